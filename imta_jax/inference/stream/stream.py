"""Continuous batching: images come one by one or in odd batches, stages run on full batches.

Every lane keeps a queue before each segment and runs a segment when enough images wait there, from
whatever submissions they came. An image leaves when it is confident, or, with a deadline, when the
next stage would answer too late: then with the best answer so far (anytime prediction).
"""

import queue
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple

import jax
import numpy as np

from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.stream.request_queue import Entrance, Request, StreamAnswers
from imta_jax.inference.stream.worker import Lane, LaneSettings

# Latencies that percentiles are taken over: the latest ones.
_REMEMBERED = 100_000


class StreamStatistics(NamedTuple):
    """How a stream has done so far.

    Attributes:
      answered: images.
      late: images of these after their deadline.
      p50_ms: median latency, submission to answer, of the latest 100,000 images; NaN before any.
      p99_ms: its 99th percentile.
      mean_batch_size: images per program.
    """

    answered: int
    late: int
    p50_ms: float
    p99_ms: float
    mean_batch_size: float


class AdaptiveStream:
    """Classifies images as they come; to be used in a `with` block, which answers all at its end.

    Args:
      classifier: whose network, thresholds and profile are used; call its `warm_up` before. The
        first stream of a classifier compiles programs of its own, before it takes images.
      max_waiting: images that may be unanswered at a time; then `submit` waits (back-pressure).

    Raises:
      ValueError: `max_waiting` below 1.
    """

    def __init__(self, classifier: AdaptiveClassifier, *, max_waiting: int = 4096):
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1; found {max_waiting}")
        self.max_waiting = max_waiting
        self._network, self._macs = classifier.network, classifier.macs
        self._entrance, self._closing = Entrance(), False
        self._failure: BaseException | None = None
        self._unanswered = 0
        self._requests: set[Request] = set()
        self._latency_ms = np.full(_REMEMBERED, np.nan)
        self._answered = self._late = 0
        settings = LaneSettings.of(classifier)
        self._lanes = [Lane(settings, self._entrance, self._note) for _ in range(classifier.lanes)]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name="imta_jax stream", daemon=True)
            for lane in self._lanes
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "AdaptiveStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self,
        images: np.ndarray | jax.Array,
        *,
        deadline_ms: float | None = None,
        timeout_s: float | None = None,
    ) -> Future[StreamAnswers]:
        """Hands images over; the answers come as a future's result.

        Args:
          images: [n, H, W, C], or one image [H, W, C]; as for `AdaptiveClassifier.predict`.
          deadline_ms: after so many milliseconds an image leaves with its best answer so far; every
            image is answered by some exit, the first if need be, if it comes to that late.
          timeout_s: how long to wait while the stream is full; None for as long as it takes.

        A future's callbacks run in a lane: they must not submit, or the lane may wait for itself.

        Raises:
          ValueError: images that the network cannot take, none, or more than `max_waiting`.
          queue.Full: the stream was full all that time; nothing was accepted.
          RuntimeError: the stream is closed, or has failed.
        """
        images = np.asarray(images)
        images = self._network.checked(images[None] if images.ndim == 3 else images)
        if not 1 <= len(images) <= self.max_waiting:
            raise ValueError(
                f"expected 1 to {self.max_waiting} images (max_waiting) at a time; "
                f"found {len(images)}"
            )
        if deadline_ms is not None and not deadline_ms >= 0:
            raise ValueError(f"deadline_ms must be a number from 0; found {deadline_ms}")
        deadline = np.inf if deadline_ms is None else time.perf_counter() + deadline_ms / 1e3
        with self._entrance.changed:
            if not self._entrance.changed.wait_for(lambda: self._takes(len(images)), timeout_s):
                raise queue.Full(
                    f"{self._unanswered} images wait, {self.max_waiting} may (max_waiting); "
                    "submit more slowly, or give a longer timeout_s"
                )
            self._check_open()
            request = Request(images.copy(), deadline)  # the caller may use the buffer again
            self._requests.add(request)
            self._unanswered += len(images)
            self._entrance.add(request)
        return request.future

    def statistics(self) -> StreamStatistics:
        """How the stream has done so far."""
        with self._entrance.changed:
            known = self._latency_ms[: min(self._answered, _REMEMBERED)]
            p50, p99 = np.percentile(known, [50, 99]) if len(known) else (np.nan, np.nan)
            programs = sum(lane.programs for lane in self._lanes)
            computed = sum(lane.computed for lane in self._lanes)
            mean = computed / programs if programs else float("nan")
            return StreamStatistics(self._answered, self._late, float(p50), float(p99), mean)

    def close(self) -> None:
        """Answers all that was submitted, then stops; to submit afterwards is an error."""
        with self._entrance.changed:
            self._closing = True
            self._entrance.changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _takes(self, count: int) -> bool:
        over = self._closing or self._failure is not None
        return over or self._unanswered + count <= self.max_waiting

    def _check_open(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the stream has failed: {self._failure!r}") from self._failure
        if self._closing:
            raise RuntimeError("the stream is closed; open another one")

    def _note(self, request: Request, at: np.ndarray) -> None:
        """Counts images that a lane has answered, and finishes requests."""
        latency = request.latency_ms(at)
        with self._entrance.changed:
            where = (self._answered + np.arange(len(at))) % _REMEMBERED
            self._latency_ms[where] = latency
            self._answered += len(at)
            self._late += int((request.answered_at[at] > request.deadline).sum())
            self._unanswered -= len(at)
            complete = request.complete and request in self._requests
            if complete:
                self._requests.remove(request)
            self._entrance.changed.notify_all()
        if complete:
            request.finish(self._macs)

    def _serve(self, lane: Lane) -> None:
        """A lane's thread: works while there is work, until the stream is closed."""
        try:
            while self._failure is None:
                if lane.step():
                    continue
                with self._entrance.changed:
                    if not self._entrance.waiting and self._closing:
                        return
                    if not self._entrance.waiting and self._failure is None:
                        self._entrance.changed.wait()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tells everyone who waits; nobody waits for ever."""
        with self._entrance.changed:
            self._failure = self._failure or error
            requests, self._requests = self._requests, set()
            self._entrance.changed.notify_all()
        for request in requests:
            request.fail(error)
