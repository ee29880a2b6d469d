"""One lane of a stream: a queue before each segment, and the choice of what to run next."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable

import jax
import numpy as np

from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.engine import Engine, Segment
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.stream.request_queue import Entrance, Request

# A batch size is full enough when larger ones save less than this share of the time per image.
_WORTH = 0.03


@dataclasses.dataclass(frozen=True)
class LaneSettings:
    """What all lanes of a stream share.

    Attributes:
      engine: compiled for every segment, at all sizes up to the full one.
      segments: in order.
      batch_sizes: per segment.
      full: images that are worth waiting for before a segment runs.
      lanes: that compute at a time, so that each takes so many times longer.
    """

    engine: Engine
    segments: tuple[Segment, ...]
    batch_sizes: tuple[BatchSizes, ...]
    full: int
    lanes: int

    @classmethod
    def of(cls, classifier: AdaptiveClassifier) -> "LaneSettings":
        """Those that the classifier's profile and plan ask for; compiles the programs."""
        sizes = classifier.profile.sizes
        segments = classifier.plan_for(sizes[-1]).segments
        milliseconds = [classifier.profile.segment_ms(segment) for segment in segments]
        per_image = np.sum(milliseconds, axis=0) / sizes
        full = int(np.flatnonzero(per_image <= (1 + _WORTH) * per_image.min())[0])
        sizes, limit = sizes[: full + 1], sizes[full]
        # Room for a queue that is nearly full before every segment, and a batch to enter.
        programs = classifier.programs_for(limit * (len(segments) + 1))
        engine = Engine(programs, classifier.thresholds)
        batch_sizes = [BatchSizes(sizes, ms[: full + 1], limit) for ms in milliseconds]
        engine.prepare(
            (segment, size)
            for segment, of_segment in zip(segments, batch_sizes, strict=True)
            for size in of_segment.used
        )
        return cls(engine, segments, tuple(batch_sizes), limit, classifier.lanes)


class Lane:
    """Runs what waits, one program at a time.

    Args:
      settings: see `LaneSettings`.
      entrance: where new images come from.
      answered: called with a request and the positions of its images that were just answered.

    Attributes:
      programs, computed: how many ran, and on how many images.
    """

    def __init__(
        self,
        settings: LaneSettings,
        entrance: Entrance,
        answered: Callable[[Request, np.ndarray], None],
    ):
        self._settings, self._entrance, self._answered = settings, entrance, answered
        engine = settings.engine
        self._pools = engine.new_pools()
        for segment in settings.segments[1:]:
            self._pools.take(segment.first)  # now, and not while the first image waits
        self._free = np.arange(engine.capacity)
        self._queues = [np.zeros(0, np.int64) for _ in settings.segments]  # the first stays empty
        # Per row of the pools, of the image that is there:
        self._request = np.empty(engine.capacity, object)
        self._position = np.zeros(engine.capacity, np.int64)
        self._arrival, self._deadline = np.zeros((2, engine.capacity))
        self._label, self._exit = np.zeros((2, engine.capacity), np.int32)
        self._confidence = np.zeros(engine.capacity, np.float32)
        # Started and not yet finished: segment, rows, what the engine returned.
        self._running: deque[tuple[int, np.ndarray, jax.Array]] = deque()
        self.programs = self.computed = 0

    @property
    def has_waiting(self) -> bool:
        """Whether images wait here that have begun."""
        return len(self._free) < len(self._request)

    def step(self) -> bool:
        """Starts what is to run next, then takes in what ran before; False if nothing is left.

        The device computes one program while the host sorts the answers of another.
        """
        left = self._leave_before_deadline()
        running, self._running = self._running, deque()
        with self._entrance.changed:
            segment = self._next()
            taken = self._entrance.take(self._room()) if segment == 0 else []
        if taken:
            self._start(0, *self._admitted(taken))
        elif segment:
            self._start(segment, self._from_queue(segment), None)
        for program in running:
            self._finish(*program)
        return bool(left or running or self._running)

    def _room(self) -> int:
        return min(len(self._free), self._settings.full)

    def _next(self) -> int | None:
        """The segment to run: the deepest full one; where none is full, the oldest image's."""
        full, entrance = self._settings.full, self._entrance
        opened = entrance.waiting > 0 and self._room() > 0
        if opened and entrance.most_urgent() < time.perf_counter() + 2 * self._seconds(0):
            return 0  # who has no answer yet comes first
        for segment in reversed(range(1, len(self._queues))):
            if len(self._queues[segment]) >= full:
                return segment
        if opened and entrance.waiting >= full and self._room() == full:
            return 0
        heads = {s: self._arrival[rows[0]] for s, rows in enumerate(self._queues) if len(rows)}
        oldest = entrance.oldest()
        if opened and oldest is not None:
            heads[0] = oldest.arrival
        return min(heads, key=heads.__getitem__) if heads else None

    def _seconds(self, segment: int) -> float:
        """When the next program of a segment would answer: after the one that is running."""
        waiting = len(self._queues[segment]) if segment else self._entrance.waiting
        count = min(waiting, self._settings.full)
        ms = self._settings.batch_sizes[segment].milliseconds(count)
        running = (
            self._settings.batch_sizes[s].milliseconds(len(rows)) for s, rows, _ in self._running
        )
        return self._settings.lanes * (ms + sum(running)) / 1e3

    def _admitted(self, taken: list[tuple[Request, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Gives rows to images from the entrance: the rows, and the images."""
        count = sum(len(positions) for _, positions in taken)
        rows, self._free = self._free[:count], self._free[count:]
        begin = 0
        for request, positions in taken:
            own = rows[begin : begin + len(positions)]
            self._request[own], self._position[own] = request, positions
            self._arrival[own], self._deadline[own] = request.arrival, request.deadline
            begin += len(positions)
        return rows, np.concatenate([request.images[positions] for request, positions in taken])

    def _from_queue(self, segment: int) -> np.ndarray:
        """Takes the rows of one program."""
        waiting = self._queues[segment]
        size = next(
            self._settings.batch_sizes[segment].pieces(min(len(waiting), self._settings.full))
        )
        self._queues[segment] = waiting[size:]
        return waiting[:size]

    def _start(self, segment: int, rows: np.ndarray, images: np.ndarray | None) -> None:
        """A segment, as so many programs as its images need: one, but for few at the entrance."""
        engine, begin = self._settings.engine, 0
        for size in self._settings.batch_sizes[segment].pieces(len(rows)):
            own = rows[begin : begin + size]
            part = None if images is None else images[begin : begin + size]
            started = engine.start(self._pools, self._settings.segments[segment], size, own, part)
            self._running.append((segment, own, started))
            begin += size

    def _finish(self, segment: int, rows: np.ndarray, started: jax.Array) -> None:
        """Waits for a program; lets the confident images leave and queues the others."""
        answers = self._settings.engine.finish(started, len(rows))
        self.programs, self.computed = self.programs + 1, self.computed + len(rows)
        self._label[rows], self._exit[rows], self._confidence[rows] = answers[:3]
        self._leave(rows[answers.done])
        if not answers.done.all():
            queue = self._queues[segment + 1]
            self._queues[segment + 1] = np.concatenate([queue, rows[~answers.done]])

    def _leave_before_deadline(self) -> bool:
        """Answers the images that the next segment would answer too late."""
        now, left = time.perf_counter(), False
        for segment, rows in enumerate(self._queues):
            late = (
                self._deadline[rows] < now + self._seconds(segment)
                if len(rows)
                else np.zeros(0, bool)
            )
            if late.any():
                self._queues[segment], left = rows[~late], True
                self._leave(rows[late])
        return left

    def _leave(self, rows: np.ndarray) -> None:
        """Answers images with what is known of them, and frees their rows."""
        for request in dict.fromkeys(self._request[rows]):
            own = rows[self._request[rows] == request]
            at = self._position[own]
            request.answer(at, self._label[own], self._exit[own], self._confidence[own])
            self._answered(request, at)
        self._request[rows] = None
        self._free = np.concatenate([self._free, rows])
