"""The queue of a segment: images of a worker that wait for the segment, first in, first out."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from imta_jax.inference.engine.engine import SegmentOutput

Slots = Int[np.ndarray, " n"]


class Part(NamedTuple):
    """Images of one output: their indices in it, and their slots in the worker."""

    output: SegmentOutput
    indices: Int[np.ndarray, " n"]
    slots: Slots


class SegmentQueue:
    """Images whose state is in outputs of the segment before.

    An output is kept, with all its images, until the last of them has left the queue.
    """

    def __init__(self) -> None:
        self._parts: deque[Part] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def oldest(self) -> int:
        """The slot of the first image."""
        return int(self._parts[0].slots[0])

    def add(self, part: Part) -> None:
        """Appends images."""
        self._parts.append(part)
        self._count += len(part.slots)

    def take(self, count: int) -> list[Part]:
        """Removes the first `count` images."""
        taken = []
        self._count -= count
        while count:
            output, indices, slots = self._parts.popleft()
            taken.append(Part(output, indices[:count], slots[:count]))
            if count < len(slots):
                self._parts.appendleft(Part(output, indices[count:], slots[count:]))
            count -= min(count, len(slots))
        return taken

    def remove(self, is_removed: Callable[[Slots], Bool[np.ndarray, " n"]]) -> Slots:
        """Removes images by their slots; returns the slots that were removed."""
        removed, kept = [np.zeros(0, np.int64)], deque()
        for output, indices, slots in self._parts:
            drop = is_removed(slots)
            removed.append(slots[drop])
            if not drop.all():
                kept.append(Part(output, indices[~drop], slots[~drop]))
        self._parts = kept
        self._count = sum(len(part.slots) for part in kept)
        return np.concatenate(removed)
