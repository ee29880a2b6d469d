"""A worker of a stream: one queue per segment, and the choice of the segment to run next."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from imta_jax.inference.engine.engine import SegmentOutput
from imta_jax.inference.stream.request import Request
from imta_jax.inference.stream.request_queue import RequestQueue
from imta_jax.inference.stream.segment_queue import Part, SegmentQueue, Slots
from imta_jax.inference.stream.settings import WorkerSettings


class _Dispatched(NamedTuple):
    """A program that runs on the device: its segment's index, its slots, its output."""

    segment: int
    slots: Slots
    output: SegmentOutput


class Worker:
    """Computes images of a stream, one program at a time.

    Args:
      settings: shared by all workers.
      queue: queue of images that no worker has started.
      on_complete: called with a request and the positions of its images that were completed.

    Attributes:
      num_programs: number of programs run.
      num_computed: number of images in them.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        queue: RequestQueue,
        on_complete: Callable[[Request, np.ndarray], None],
    ):
        self._queue, self._on_complete = queue, on_complete
        self._dispatched: deque[_Dispatched] = deque()
        self.num_programs = self.num_computed = 0
        self._next_settings: WorkerSettings | None = None
        self._start(settings)

    def use(self, settings: WorkerSettings) -> None:
        """Uses other settings from the next step on at which no image is between two segments."""
        self._next_settings = settings

    def _start(self, settings: WorkerSettings) -> None:
        """Prepares queues and slots for settings. No image is in progress."""
        self._settings = settings
        self._free_slots = np.arange(settings.capacity)
        # Images that wait for each segment. The first segment's is always empty.
        self._segment_queues = [SegmentQueue() for _ in settings.segments]
        # Per slot, about the image in it:
        self._request = np.empty(settings.capacity, object)
        self._position = np.zeros(settings.capacity, np.int64)
        self._arrival = np.zeros(settings.capacity)
        self._deadline = np.zeros(settings.capacity)
        self._num_with_deadline = 0  # of the images in slots
        self._label = np.zeros(settings.capacity, np.int32)
        self._exit = np.zeros(settings.capacity, np.int32)
        self._confidence = np.zeros(settings.capacity, np.float32)

    def step(self) -> bool:
        """Dispatches the next program, then fetches the previous one; False if idle.

        The device computes one program while the host handles the predictions of another.
        """
        if self._next_settings is not None:
            self._switch()
        expired = self._complete_before_deadline()
        dispatched, self._dispatched = self._dispatched, deque()
        with self._queue.condition:
            segment = self._choose_segment()
            taken = self._queue.take(self._num_admissible()) if segment == 0 else []
        if taken:
            self._dispatch_images(*self._admit(taken))
        elif segment:
            self._dispatch_waiting(segment)
        for program in dispatched:
            self._fetch(program)
        return bool(expired or dispatched or self._dispatched)

    def _switch(self) -> None:
        """Completes the dispatched programs, and uses the next settings if no image is left."""
        dispatched, self._dispatched = self._dispatched, deque()
        for program in dispatched:
            self._fetch(program)
        settings, self._next_settings = self._next_settings, None
        if settings is not None and any(map(len, self._segment_queues)):
            self._next_settings = self._next_settings or settings
        elif settings is not None:
            self._start(settings)

    def _num_admissible(self) -> int:
        return min(len(self._free_slots), self._settings.full_batch)

    def _choose_segment(self) -> int | None:
        """The deepest segment with a full batch; without one, the segment of the oldest image."""
        full, queue = self._settings.full_batch, self._queue
        can_admit = queue.num_images > 0 and self._num_admissible() > 0
        if can_admit and queue.earliest_deadline() < time.perf_counter() + 2 * self._seconds(0):
            return 0  # images without a prediction have priority
        for segment in reversed(range(1, len(self._segment_queues))):
            if len(self._segment_queues[segment]) >= full:
                return segment
        if can_admit and queue.num_images >= full and self._num_admissible() == full:
            return 0
        arrivals = {
            segment: float(self._arrival[waiting.oldest()])
            for segment, waiting in enumerate(self._segment_queues)
            if len(waiting)
        }
        oldest = queue.oldest()
        if can_admit and oldest is not None:
            arrivals[0] = oldest.arrival
        return min(arrivals, key=arrivals.__getitem__) if arrivals else None

    def _seconds(self, segment: int) -> float:
        """Expected seconds until the next program of a segment ends, after those dispatched."""
        sizes = self._settings.batch_sizes
        waiting = len(self._segment_queues[segment]) if segment else self._queue.num_images
        ms = sizes[segment].milliseconds(min(waiting, self._settings.full_batch))
        ms += sum(sizes[p.segment].milliseconds(len(p.slots)) for p in self._dispatched)
        return self._settings.num_workers * ms / 1e3

    def _admit(
        self, taken: list[tuple[Request, np.ndarray]]
    ) -> tuple[Slots, Shaped[np.ndarray, "n H W C"]]:
        """Assigns slots to images from the request queue; returns the slots and the images."""
        count = sum(len(positions) for _, positions in taken)
        slots, self._free_slots = self._free_slots[:count], self._free_slots[count:]
        begin = 0
        for request, positions in taken:
            assigned = slots[begin : begin + len(positions)]
            self._request[assigned], self._position[assigned] = request, positions
            self._arrival[assigned], self._deadline[assigned] = request.arrival, request.deadline
            begin += len(positions)
        self._num_with_deadline += int(np.isfinite(self._deadline[slots]).sum())
        return slots, np.concatenate([request.images[positions] for request, positions in taken])

    def _dispatch_images(self, slots: Slots, images: Shaped[np.ndarray, "n H W C"]) -> None:
        """Dispatches the first segment, as several programs if no batch size fits the images."""
        segment, begin = self._settings.segments[0], 0
        for size in self._settings.batch_sizes[0].split(len(slots)):
            in_program = slice(begin, begin + size)
            output = self._settings.engine.run_images(segment, size, images[in_program])
            self._dispatched.append(_Dispatched(0, slots[in_program], output))
            begin += size

    def _dispatch_waiting(self, i: int) -> None:
        """Dispatches one program of a later segment."""
        engine, segment, queue = (
            self._settings.engine,
            self._settings.segments[i],
            self._segment_queues[i],
        )
        count = min(len(queue), self._settings.full_batch)
        size = next(self._settings.batch_sizes[i].split(count))
        parts = queue.take(min(count, size))
        sources = [(part.output, part.indices) for part in parts]
        output = engine.run(segment, size, engine.collect(segment.first, sources, size))
        slots = np.concatenate([part.slots for part in parts])
        self._dispatched.append(_Dispatched(i, slots, output))

    def _fetch(self, program: _Dispatched) -> None:
        """Waits for a program; completes the confident images and queues the others."""
        segment, slots, output = program
        predictions = self._settings.engine.fetch(output, len(slots))
        self.num_programs += 1
        self.num_computed += len(slots)
        self._label[slots], self._exit[slots], self._confidence[slots] = predictions[:3]
        self._complete(slots[predictions.exited])
        continuing = np.flatnonzero(~predictions.exited)
        if len(continuing):
            self._segment_queues[segment + 1].add(Part(output, continuing, slots[continuing]))

    def _complete_before_deadline(self) -> bool:
        """Completes images for which the next segment would end after their deadline."""
        now, any_completed = time.perf_counter(), False
        if not self._num_with_deadline:
            return False
        for segment, waiting in enumerate(self._segment_queues):
            if not len(waiting):
                continue
            limit = now + self._seconds(segment)
            late = waiting.remove(lambda slots, limit=limit: self._deadline[slots] < limit)
            if len(late):
                any_completed = True
                self._complete(late, truncated=True)
        return any_completed

    def _complete(self, slots: Slots, *, truncated: bool = False) -> None:
        """Records the latest predictions of images and frees their slots."""
        owners = self._request[slots]
        for request in dict.fromkeys(owners):
            of_request = slots[owners == request]
            positions = self._position[of_request]
            predicted = (
                self._label[of_request],
                self._exit[of_request],
                self._confidence[of_request],
            )
            request.record(positions, *predicted, truncated=truncated)
            self._on_complete(request, positions)
        self._request[slots] = None
        self._num_with_deadline -= int(np.isfinite(self._deadline[slots]).sum())
        self._free_slots = np.concatenate([self._free_slots, slots])
