"""Continuous batching: images arrive in batches of any size, and stages run on full batches.

Each worker keeps a queue before each segment and runs a segment when enough images wait there, from
any submission. An image completes when it is confident enough. An image with a deadline completes
earlier with its latest prediction if the next segment would end too late (anytime prediction).
"""

import logging
import queue
import threading
import time
from concurrent.futures import Future
from types import TracebackType

import jax
import numpy as np

from imta_jax.errors import InputError
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.profiling import MeasurementStoppedError
from imta_jax.inference.stream.observation import Observer, OrderedObserver
from imta_jax.inference.stream.request import Request, StreamPredictions
from imta_jax.inference.stream.request_queue import RequestQueue
from imta_jax.inference.stream.settings import WorkerSettings
from imta_jax.inference.stream.statistics import LatencyRecorder, StreamStatistics
from imta_jax.inference.stream.worker import Worker

_log = logging.getLogger(__name__)


class AdaptiveStream:
    """Classifies images as they arrive. As a context manager, it completes all images on exit.

    Args:
      classifier: provides network, thresholds and profile. Call its `warm_up` before. The first
        stream of a classifier compiles its own programs at construction.
      max_waiting: largest number of images in the stream. `submit` blocks while it is reached.
      observer: called once per request, in the order of submission, with its images [n, H, W, C],
        its `StreamPredictions`, and whether each image left because of its deadline [n]. It runs in
        a worker's thread and must be fast (see `StreamMonitor`).
      wait: if False, images are accepted as soon as the full network is compiled. The stages are
        then measured and the other programs compiled in the background, and `warm_up` of the
        classifier need not be called before.

    Raises:
      ValueError: `max_waiting` below 1.
    """

    def __init__(
        self,
        classifier: AdaptiveClassifier,
        *,
        max_waiting: int = 4096,
        observer: Observer | None = None,
        wait: bool = True,
    ):
        if max_waiting < 1:
            raise InputError(f"max_waiting must be at least 1; found {max_waiting}")
        self.max_waiting = max_waiting
        self._network, self._macs = classifier.network, classifier.macs
        self._queue = RequestQueue()
        # Protected by the queue's condition:
        self._closing = False
        self._failure: BaseException | None = None
        self._num_waiting = 0
        self._requests: set[Request] = set()
        self._latencies = LatencyRecorder()
        self._observed = None if observer is None else OrderedObserver(observer, self._macs)
        if wait:
            settings = WorkerSettings.from_classifier(classifier)
        else:
            settings = WorkerSettings.full_network(classifier, only_smallest=True)
        self._workers = [
            Worker(settings, self._queue, self._on_complete) for _ in range(classifier.num_workers)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name="imta_jax stream", daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()
        self._is_warm = wait
        if not wait:
            # Not a daemon: a process must not exit while XLA compiles.
            thread = threading.Thread(target=self._warm_up, args=(classifier,), name="warm-up")
            thread.start()

    @property
    def is_warm(self) -> bool:
        """Whether early exits save time: stages are measured and their programs compiled."""
        return self._is_warm

    def __enter__(self) -> "AdaptiveStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self,
        images: np.ndarray | jax.Array,
        *,
        deadline_ms: float | None = None,
        timeout_s: float | None = None,
    ) -> Future[StreamPredictions]:
        """Submits images. The result of the future is their predictions.

        Callbacks of the future run in a worker's thread. They must not call `submit`: the worker
        could wait for itself.

        Args:
          images: [n, H, W, C], or one image [H, W, C]; as for `AdaptiveClassifier.predict`.
          deadline_ms: milliseconds from now after which a prediction is late. An image with a
            deadline gets the best prediction available in time, at least the first exit's.
          timeout_s: seconds to wait while the stream is full; None waits without limit.

        Raises:
          ValueError: images that the network cannot take, none, or more than `max_waiting`.
          queue.Full: the stream was full during `timeout_s`; no image was accepted.
          RuntimeError: the stream is closed or has failed.
        """
        images = np.asarray(images)
        images = self._network.validate_images(images[None] if images.ndim == 3 else images)
        if not 1 <= len(images) <= self.max_waiting:
            raise InputError(
                f"expected 1 to max_waiting={self.max_waiting} images per call; found {len(images)}"
            )
        if deadline_ms is not None and not deadline_ms >= 0:
            raise InputError(f"deadline_ms must be 0 or more; found {deadline_ms}")
        deadline = np.inf if deadline_ms is None else time.perf_counter() + deadline_ms / 1e3
        with self._queue.condition:
            if not self._queue.condition.wait_for(lambda: self._accepts(len(images)), timeout_s):
                raise queue.Full(
                    f"{self._num_waiting} images are in the stream, max_waiting is "
                    f"{self.max_waiting}; submit more slowly or increase timeout_s"
                )
            self._check_open()
            request = Request(images.copy(), deadline)  # the caller may reuse the buffer
            self._requests.add(request)
            if self._observed is not None:
                self._observed.add(request)
            self._num_waiting += len(images)
            self._queue.add(request)
        return request.future

    def statistics(self) -> StreamStatistics:
        """Returns the statistics so far."""
        with self._queue.condition:
            programs = sum(worker.num_programs for worker in self._workers)
            computed = sum(worker.num_computed for worker in self._workers)
            p50_ms, p99_ms = self._latencies.percentiles(50, 99)
            return StreamStatistics(
                self._latencies.completed,
                self._latencies.late,
                p50_ms,
                p99_ms,
                mean_batch_size=computed / programs if programs else float("nan"),
                waiting=self._num_waiting,
            )

    def close(self) -> None:
        """Completes all submitted images and stops. A later `submit` raises RuntimeError."""
        with self._queue.condition:
            self._closing = True
            self._queue.condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _accepts(self, count: int) -> bool:
        """Whether `submit` can proceed, with `count` images or with an error."""
        stopped = self._closing or self._failure is not None
        return stopped or self._num_waiting + count <= self.max_waiting

    def _check_open(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the stream has failed: {self._failure!r}") from self._failure
        if self._closing:
            raise RuntimeError("the stream is closed; open a new AdaptiveStream")

    def _on_complete(self, request: Request, positions: np.ndarray) -> None:
        """Counts completed images, and finishes the request with its last one."""
        latency_ms = request.latency_ms(positions)
        with self._queue.condition:
            late = request.completed_at[positions] > request.deadline
            self._latencies.record(latency_ms, late)
            self._num_waiting -= len(positions)
            complete = request.complete and request in self._requests
            if complete:
                self._requests.remove(request)
            self._queue.condition.notify_all()
        if complete:
            request.finish(self._macs)
            if self._observed is not None:
                self._observed.report()

    def _warm_up(self, classifier: AdaptiveClassifier) -> None:
        """Compiles larger batches of the full network, then measures and compiles the stages."""
        try:
            self._use(WorkerSettings.full_network(classifier))
            classifier.measure(is_stopped=lambda: self._closing)
            self._use(WorkerSettings.from_classifier(classifier))
            self._is_warm = True
        except MeasurementStoppedError:
            pass
        except Exception:
            _log.exception("the warm-up of the stream failed; every image runs the full network")

    def _use(self, settings: WorkerSettings) -> None:
        for worker in self._workers:
            worker.use(settings)

    def _run(self, worker: Worker) -> None:
        """A worker's thread: steps until the stream is closed and no image is left."""
        try:
            while self._failure is None:
                if worker.step():
                    continue
                with self._queue.condition:
                    if not self._queue.num_images and self._closing:
                        return
                    if not self._queue.num_images and self._failure is None:
                        self._queue.condition.wait()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Stops the stream; every pending future raises the error."""
        with self._queue.condition:
            self._failure = self._failure or error
            requests, self._requests = self._requests, set()
            self._queue.condition.notify_all()
        for request in requests:
            request.fail(error)
