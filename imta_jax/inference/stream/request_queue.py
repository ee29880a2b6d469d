"""Images on their way through a stream: who asked, since when, and what is known of them so far."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np


class StreamAnswers(NamedTuple):
    """What a stream answers to one submission of n images, in their order.

    Attributes:
      labels: int32 [n], predicted class.
      exit: int32 [n], index from 0 of the exit that answered.
      confidence: float32 [n], highest softmax probability there.
      macs: int64 [n], multiply-adds until that exit.
      latency_ms: float64 [n], from submission to answer.
      in_time: bool [n], whether that was before the deadline.
    """

    labels: np.ndarray
    exit: np.ndarray
    confidence: np.ndarray
    macs: np.ndarray
    latency_ms: np.ndarray
    in_time: np.ndarray


class Request:
    """One submission: its images, and its answers as they come in.

    Args:
      images: [n, H, W, C], checked.
      deadline: on the clock of `time.perf_counter`, infinite for none.
    """

    def __init__(self, images: np.ndarray, deadline: float):
        count = len(images)
        self.images = images
        self.arrival = time.perf_counter()
        self.deadline = deadline
        self.future: Future[StreamAnswers] = Future()
        self.labels = np.zeros(count, np.int32)
        self.exits = np.zeros(count, np.int32)
        self.confidence = np.zeros(count, np.float32)
        self.answered_at = np.full(count, np.nan)

    def answer(
        self, at: np.ndarray, labels: np.ndarray, exits: np.ndarray, confidence: np.ndarray
    ) -> None:
        """Notes the answers of the images `at`.

        Raises:
          RuntimeError: one of them was answered before.
        """
        if not np.isnan(self.answered_at[at]).all():
            raise RuntimeError("an image was answered twice; please report this with its stream")
        self.labels[at], self.exits[at], self.confidence[at] = labels, exits, confidence
        self.answered_at[at] = time.perf_counter()

    @property
    def complete(self) -> bool:
        """Whether all images were answered."""
        return not np.isnan(self.answered_at).any()

    def latency_ms(self, at: np.ndarray) -> np.ndarray:
        """From submission to answer, of images that were answered."""
        return 1e3 * (self.answered_at[at] - self.arrival)

    def finish(self, macs: np.ndarray) -> None:
        """Gives the answers to whoever waits for them; `macs` [E] are cumulative."""
        everyone = np.arange(len(self.labels))
        answers = StreamAnswers(
            self.labels,
            self.exits,
            self.confidence,
            macs[self.exits],
            self.latency_ms(everyone),
            self.answered_at <= self.deadline,
        )
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answers)

    def fail(self, error: BaseException) -> None:
        """Tells whoever waits for the answers that there will be none."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Entrance:
    """Images that were submitted and not yet begun, first come first served; for all lanes."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting = 0
        # With how many of their images have begun.
        self._requests: deque[tuple[Request, int]] = deque()
        self._hurried = 0  # requests here that have a deadline

    def add(self, request: Request) -> None:
        """Appends all images of a request; under `changed`."""
        self._requests.append((request, 0))
        self.waiting += len(request.images)
        self._hurried += request.deadline < np.inf
        self.changed.notify_all()

    def take(self, count: int) -> list[tuple[Request, np.ndarray]]:
        """The next `count` images at most: per request their positions in it; under `changed`."""
        taken = []
        while count and self._requests:
            request, begun = self._requests.popleft()
            upto = min(begun + count, len(request.images))
            taken.append((request, np.arange(begun, upto)))
            count -= upto - begun
            self.waiting -= upto - begun
            if upto < len(request.images):
                self._requests.appendleft((request, upto))
            else:
                self._hurried -= request.deadline < np.inf
        return taken

    def oldest(self) -> Request | None:
        """Whose turn it is."""
        return self._requests[0][0] if self._requests else None

    def most_urgent(self) -> float:
        """The earliest deadline of all that wait."""
        if not self._hurried:
            return np.inf
        return min(request.deadline for request, _ in self._requests)
