"""A worker of a stream: one queue per segment, and the choice of the segment to run next."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from imta_jax.inference.engine.engine import SegmentOutput
from imta_jax.inference.stream.request import Request
from imta_jax.inference.stream.request_queue import RequestQueue
from imta_jax.inference.stream.settings import WorkerSettings

Slots = Int[np.ndarray, " n"]


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
        self._settings, self._queue, self._on_complete = settings, queue, on_complete
        engine = settings.engine
        self._buffers = engine.new_buffers()
        for segment in settings.segments[1:]:
            self._buffers.get(segment.first)  # allocate now, not while an image waits
        self._free_slots = np.arange(engine.capacity)
        # Slots of the images that wait for each segment. The first segment's is always empty.
        self._segment_queues = [np.zeros(0, np.int64) for _ in settings.segments]
        # Per slot, about the image in it:
        self._request = np.empty(engine.capacity, object)
        self._position = np.zeros(engine.capacity, np.int64)
        self._arrival = np.zeros(engine.capacity)
        self._deadline = np.zeros(engine.capacity)
        self._label = np.zeros(engine.capacity, np.int32)
        self._exit = np.zeros(engine.capacity, np.int32)
        self._confidence = np.zeros(engine.capacity, np.float32)
        self._dispatched: deque[_Dispatched] = deque()
        self.num_programs = self.num_computed = 0

    def step(self) -> bool:
        """Dispatches the next program, then fetches the previous one; False if idle.

        The device computes one program while the host handles the predictions of another.
        """
        expired = self._complete_before_deadline()
        dispatched, self._dispatched = self._dispatched, deque()
        with self._queue.condition:
            segment = self._choose_segment()
            taken = self._queue.take(self._num_admissible()) if segment == 0 else []
        if taken:
            self._dispatch(0, *self._admit(taken))
        elif segment:
            self._dispatch(segment, self._pop_batch(segment), None)
        for program in dispatched:
            self._fetch(program)
        return bool(expired or dispatched or self._dispatched)

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
            segment: float(self._arrival[slots[0]])
            for segment, slots in enumerate(self._segment_queues)
            if len(slots)
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
            own = slots[begin : begin + len(positions)]
            self._request[own], self._position[own] = request, positions
            self._arrival[own], self._deadline[own] = request.arrival, request.deadline
            begin += len(positions)
        return slots, np.concatenate([request.images[positions] for request, positions in taken])

    def _pop_batch(self, segment: int) -> Slots:
        """Removes the slots of one program from a segment's queue."""
        waiting = self._segment_queues[segment]
        count = min(len(waiting), self._settings.full_batch)
        size = next(self._settings.batch_sizes[segment].split(count))
        self._segment_queues[segment] = waiting[size:]
        return waiting[:size]

    def _dispatch(
        self, segment: int, slots: Slots, images: Shaped[np.ndarray, "n H W C"] | None
    ) -> None:
        """Dispatches a segment, as several programs if no batch size fits the images."""
        engine, begin = self._settings.engine, 0
        for size in self._settings.batch_sizes[segment].split(len(slots)):
            own, stages = slots[begin : begin + size], self._settings.segments[segment]
            if images is not None:
                output = engine.run_images(stages, size, images[begin : begin + size])
            else:
                state = engine.gather(stages.first, self._buffers, own, size)
                output = engine.run(stages, size, state)
            self._dispatched.append(_Dispatched(segment, own, output))
            begin += size

    def _fetch(self, program: _Dispatched) -> None:
        """Waits for a program; completes the confident images and queues the others."""
        segment, slots, output = program
        engine = self._settings.engine
        predictions = engine.fetch(output, len(slots))
        self.num_programs += 1
        self.num_computed += len(slots)
        self._label[slots], self._exit[slots], self._confidence[slots] = predictions[:3]
        self._complete(slots[predictions.exited])
        if not predictions.exited.all():
            waiting = self._segment_queues[segment + 1]
            continuing = slots[~predictions.exited]
            stage = self._settings.segments[segment + 1].first
            written = np.where(predictions.exited, engine.capacity, slots)
            engine.store(stage, output, self._buffers, written)
            self._segment_queues[segment + 1] = np.concatenate([waiting, continuing])

    def _complete_before_deadline(self) -> bool:
        """Completes images for which the next segment would end after their deadline."""
        now, any_completed = time.perf_counter(), False
        for segment, slots in enumerate(self._segment_queues):
            if not len(slots):
                continue
            late = self._deadline[slots] < now + self._seconds(segment)
            if late.any():
                self._segment_queues[segment], any_completed = slots[~late], True
                self._complete(slots[late], truncated=True)
        return any_completed

    def _complete(self, slots: Slots, *, truncated: bool = False) -> None:
        """Records the latest predictions of images and frees their slots."""
        for request in dict.fromkeys(self._request[slots]):
            own = slots[self._request[slots] == request]
            positions = self._position[own]
            predicted = self._label[own], self._exit[own], self._confidence[own]
            request.record(positions, *predicted, truncated=truncated)
            self._on_complete(request, positions)
        self._request[slots] = None
        self._free_slots = np.concatenate([self._free_slots, slots])
