"""How a batch is run: which exits really stop, and in which batch sizes the images are computed.

Letting images leave after an exit means to gather those that stay and to ask the host; between two
exits where few leave, that costs more than it saves, and their stages are better compiled together
(the adaptive rebatching rule of DREX, arXiv 2512.15705, taken over a whole network). The cheapest
segmentation is found exactly, by dynamic programming over measured times.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from imta_jax.inference.engine.engine import Segment
from imta_jax.inference.engine.profile import StageProfile


@dataclasses.dataclass(frozen=True)
class Plan:
    """Segments for batches up to a size, and how each is cut into programs.

    Attributes:
      segments: in order; they cover all stages.
      expected_ms: for a batch of that size, where images leave as foreseen.
    """

    segments: tuple[Segment, ...]
    expected_ms: float


class BatchSizes:
    """The cheapest way to compute any number of images with a few batch sizes.

    Args:
      sizes: batch sizes [S], rising.
      milliseconds: [S], what one batch of each takes.
      limit: the largest number of images asked for.
    """

    def __init__(self, sizes: Sequence[int], milliseconds: np.ndarray, limit: int):
        self.sizes = tuple(sizes)
        self._least = np.zeros(limit + 1)
        self._size = np.zeros(limit + 1, np.int64)
        for count in range(1, limit + 1):
            rest = np.maximum(count - np.asarray(sizes), 0)
            total = milliseconds + self._least[rest]
            # Of two equally good ones the larger: fewer programs.
            best = len(total) - 1 - int(np.argmin(total[::-1]))
            self._least[count], self._size[count] = total[best], sizes[best]

    def milliseconds(self, count: float) -> float:
        """What `count` images take; an expected number need not be whole."""
        below = int(count)
        above = min(below + 1, len(self._least) - 1)
        part = count - below
        return float((1 - part) * self._least[below] + part * self._least[above])

    @property
    def used(self) -> list[int]:
        """The sizes that some number of images asks for; the others need no program."""
        return sorted({int(size) for size in self._size[1:]})

    def pieces(self, count: int) -> Iterator[int]:
        """Batch sizes, one program each, that hold `count` images together."""
        while count > 0:
            size = int(self._size[count])
            yield size
            count -= size


def best_plan(
    profile: StageProfile,
    count: int,
    reach: np.ndarray,
    batch_sizes: dict[Segment, BatchSizes],
) -> Plan:
    """The segmentation that takes least time for a batch.

    Args:
      profile: what stages cost.
      count: images in the batch.
      reach: float [E], share of images that come to each stage, 1 at the first.
      batch_sizes: of every segment.
    """
    num_exits = len(profile.stage_ms)
    least = [0.0] * (num_exits + 1)
    ends = [0] * num_exits
    for first in reversed(range(num_exits)):
        options = [
            batch_sizes[Segment(first, last)].milliseconds(count * reach[first]) + least[last + 1]
            for last in range(first, num_exits)
        ]
        ends[first] = first + int(np.argmin(options))
        least[first] = min(options)
    segments, first = [], 0
    while first < num_exits:
        segments.append(Segment(first, ends[first]))
        first = ends[first] + 1
    return Plan(tuple(segments), least[0])


def all_segments(num_exits: int) -> list[Segment]:
    """Every run of stages, from single ones to the whole network."""
    return [Segment(i, j) for i in range(num_exits) for j in range(i, num_exits)]


def reach_of(exit_fractions: np.ndarray | None, listening: np.ndarray) -> np.ndarray:
    """Share of images [E] that come to each stage.

    Args:
      exit_fractions: [E], share that leaves at each exit; None if unknown: the same at every exit
        where images can leave.
      listening: bool [E], where they can.
    """
    if exit_fractions is None:
        exit_fractions = listening / listening.sum()
    return np.clip(1.0 - np.cumsum(exit_fractions) + exit_fractions, 0.0, 1.0)
