"""One submission to a stream: its images, their predictions so far, and the caller's future."""

import time
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64, Shaped


class StreamPredictions(NamedTuple):
    """Predictions for one submission of n images, in their order.

    Attributes:
      labels: predicted class.
      exit: index from 0 of the exit that predicted it.
      confidence: highest softmax probability at that exit.
      macs: multiply-adds up to that exit.
      latency_ms: milliseconds from submission to prediction.
      in_time: whether the prediction met the deadline.
    """

    labels: Int32[np.ndarray, " n"]
    exit: Int32[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    macs: Int64[np.ndarray, " n"]
    latency_ms: Float64[np.ndarray, " n"]
    in_time: Bool[np.ndarray, " n"]


class Request:
    """A submission in progress.

    Args:
      images: validated images.
      deadline: time on the clock of `time.perf_counter`; infinite for none.
    """

    def __init__(self, images: Shaped[np.ndarray, "n H W C"], deadline: float):
        count = len(images)
        self.images = images
        self.arrival = time.perf_counter()
        self.deadline = deadline
        self.future: Future[StreamPredictions] = Future()
        self.labels = np.zeros(count, np.int32)
        self.exits = np.zeros(count, np.int32)
        self.confidence = np.zeros(count, np.float32)
        self.truncated = np.zeros(count, bool)
        self.completed_at = np.full(count, np.nan)

    def record(
        self,
        positions: Int[np.ndarray, " m"],
        labels: Int32[np.ndarray, " m"],
        exits: Int32[np.ndarray, " m"],
        confidence: Float32[np.ndarray, " m"],
        *,
        truncated: bool = False,
    ) -> None:
        """Stores the predictions of the images at `positions`.

        `truncated` images leave because of the deadline instead of the exit rule.

        Raises:
          RuntimeError: an image has a prediction already.
        """
        if not np.isnan(self.completed_at[positions]).all():
            raise RuntimeError(
                f"the images at positions {positions.tolist()} were already classified; please "
                "report this as a bug"
            )
        self.labels[positions], self.exits[positions] = labels, exits
        self.confidence[positions], self.truncated[positions] = confidence, truncated
        self.completed_at[positions] = time.perf_counter()

    @property
    def complete(self) -> bool:
        """Whether all images have predictions."""
        return not np.isnan(self.completed_at).any()

    def latency_ms(self, positions: Int[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """Milliseconds from submission to prediction, of completed images."""
        return 1e3 * (self.completed_at[positions] - self.arrival)

    def predictions(self, macs: Int64[np.ndarray, " E"]) -> StreamPredictions:
        """The predictions of a complete request. `macs` are cumulative per exit."""
        return StreamPredictions(
            self.labels,
            self.exits,
            self.confidence,
            macs[self.exits],
            self.latency_ms(np.arange(len(self.labels))),
            self.completed_at <= self.deadline,
        )

    def finish(self, macs: Int64[np.ndarray, " E"]) -> None:
        """Sets the future's result. `macs` are cumulative per exit."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.predictions(macs))

    def fail(self, error: BaseException) -> None:
        """Sets the future's exception."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
