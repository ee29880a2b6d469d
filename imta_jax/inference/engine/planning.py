"""Planning: at which exits a batch stops, and how images are divided into compiled batch sizes.

Stopping after an exit costs a gather and a host sync. Where few images exit, that costs
more than it saves, and the stages are compiled together into one segment (the adaptive rebatching
rule of DREX, arXiv 2512.15705, applied to a whole network). Dynamic programming over measured times
finds the cheapest segmentation exactly.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from imta_jax.inference.engine.profile import StageProfile
from imta_jax.inference.engine.programs import Segment

# Host time of an additional program, in milliseconds.
_PROGRAM_MS = 0.1
# Largest relative slowdown accepted for leaving out batch sizes, which saves programs.
_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Plan:
    """The segments in which a batch is computed.

    Attributes:
      segments: in order. They cover all stages.
      expected_ms: expected time of the batch, in milliseconds.
    """

    segments: tuple[Segment, ...]
    expected_ms: float


class BatchSizes:
    """The cheapest way to compute any number of images with a few batch sizes.

    Args:
      sizes: compiled batch sizes [S], ascending.
      milliseconds: time of one batch of each size.
      limit: largest number of images.
      split_ms: additional time per batch of each size if images are split into several batches.

    Attributes:
      least: least time for 0 to `limit` images, in milliseconds.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        milliseconds: Float[np.ndarray, " S"],
        limit: int,
        split_ms: Float[np.ndarray, " S"] | float = 0.0,
    ):
        self.sizes = tuple(sizes)
        self.least = np.zeros(limit + 1)
        self._size = np.zeros(limit + 1, np.int64)
        for count in range(1, limit + 1):
            remaining = np.maximum(count - np.asarray(sizes), 0)
            total = milliseconds + self.least[remaining] + np.where(remaining > 0, split_ms, 0.0)
            # In a tie, take the larger size: fewer programs.
            best = len(total) - 1 - int(np.argmin(total[::-1]))
            self.least[count], self._size[count] = total[best], sizes[best]

    def milliseconds(self, count: float) -> float:
        """Time for `count` images. An expected count may be fractional."""
        below = int(count)
        above = min(below + 1, len(self.least) - 1)
        fraction = count - below
        return float((1 - fraction) * self.least[below] + fraction * self.least[above])

    @property
    def used(self) -> list[int]:
        """The sizes that `split` can return. The other sizes need no program."""
        return self.used_for(len(self._size) - 1)

    def used_for(self, count: int) -> list[int]:
        """The sizes that `split` can return for at most `count` images."""
        return sorted({int(size) for size in self._size[1 : count + 1]})

    @property
    def is_split(self) -> bool:
        """Whether some number of images is computed by several programs."""
        return bool((self._size < np.arange(len(self._size))).any())

    def split(self, count: int) -> Iterator[int]:
        """Yields the batch sizes of the programs that compute `count` images."""
        while count > 0:
            size = int(self._size[count])
            yield size
            count -= size


def choose_sizes(
    sizes: Sequence[int], milliseconds: Float[np.ndarray, " S"], limit: int
) -> list[int]:
    """Indices of the batch sizes that are worth a program.

    Sizes are left out, the least useful first, as long as batches of 1 to `limit` images take at
    most `_TOLERANCE` longer on average. The smallest size stays. A batch of n images has the weight
    1 / n, because late stages run on few images.

    Args:
      sizes: batch sizes [S], ascending.
      milliseconds: time of one batch of each size.
      limit: largest number of images.
    """

    def relative_time(chosen: Sequence[int]) -> float:
        candidate = BatchSizes([sizes[i] for i in chosen], milliseconds[chosen], limit, _PROGRAM_MS)
        return float(np.average(candidate.least[1:] / least, weights=weights))

    weights = 1 / np.arange(1, limit + 1)
    least = BatchSizes(sizes, milliseconds, limit, _PROGRAM_MS).least[1:]
    chosen = list(range(len(sizes)))
    while len(chosen) > 1:
        times = [relative_time([j for j in chosen if j != i]) for i in chosen[1:]]
        if min(times) > 1 + _TOLERANCE:
            break
        del chosen[1 + int(np.argmin(times))]
    return chosen


def best_plan(
    profile: StageProfile,
    count: int,
    reach_fractions: Float[np.ndarray, " E"],
    batch_sizes: Mapping[Segment, BatchSizes],
) -> Plan:
    """Finds the segmentation with the least expected time.

    Args:
      profile: times of the stages.
      count: images in the batch.
      reach_fractions: fraction of the images that reach each stage; 1 at the first.
      batch_sizes: batch sizes for every segment.
    """
    num_exits = len(profile.stage_ms)
    least = [0.0] * (num_exits + 1)
    ends = [0] * num_exits
    for first in reversed(range(num_exits)):
        expected_count = float(count * reach_fractions[first])
        options = [
            batch_sizes[Segment(first, last)].milliseconds(expected_count) + least[last + 1]
            for last in range(first, num_exits)
        ]
        ends[first] = first + int(np.argmin(options))
        least[first] = min(options)
    segments, first = [], 0
    while first < num_exits:
        segments.append(Segment(first, ends[first]))
        first = ends[first] + 1
    return Plan(tuple(segments), least[0])


class PlanTable:
    """Plans for all batch sizes, from a profile.

    Args:
      profile: times of the stages.
      reach: fraction of the images that reach each stage.
      capacity: largest number of images.

    Attributes:
      batch_sizes: `BatchSizes` per segment.
      plans: per batch size of the profile.
      fastest_size: batch size of the profile with the least expected time per image.
    """

    def __init__(self, profile: StageProfile, reach: Float[np.ndarray, " E"], capacity: int):
        self._profile, self._reach = profile, reach
        chosen = list(range(len(profile.sizes)))
        if profile.is_measured:
            chosen = choose_sizes(profile.sizes, profile.stage_ms.sum(axis=0), capacity)
        sizes = [profile.sizes[i] for i in chosen]
        self.batch_sizes = {
            segment: BatchSizes(
                sizes,
                _expected_ms(profile, segment, reach)[chosen],
                capacity,
                _split_ms(profile, segment)[chosen],
            )
            for segment in all_segments(len(profile.stage_ms))
        }
        self.plans = {size: self._plan(size) for size in profile.sizes}
        self.fastest_size = min(self.plans, key=lambda size: self.plans[size].expected_ms / size)

    def plan_for(self, count: int) -> Plan:
        """The plan of the largest batch size that is at most `count`."""
        sizes = self._profile.sizes
        return self.plans[max(size for size in sizes if size <= max(count, sizes[0]))]

    def planned_sizes(self) -> dict[Segment, BatchSizes]:
        """The batch sizes of the segments that a plan contains."""
        return {
            segment: self.batch_sizes[segment]
            for plan in self.plans.values()
            for segment in plan.segments
        }

    def _plan(self, count: int) -> Plan:
        return best_plan(self._profile, count, self._reach, self.batch_sizes)


def _expected_ms(
    profile: StageProfile, segment: Segment, reach: Float[np.ndarray, " E"]
) -> Float[np.ndarray, " S"]:
    """Milliseconds of a segment at each batch size.

    The program of a single image skips the stages after its exit (`programs`) if it ends the
    network, so each stage counts with the fraction of the images that reach it.
    """
    milliseconds = profile.segment_ms(segment)
    if profile.sizes[0] != 1 or segment.last < len(reach) - 1 or not reach[segment.first]:
        return milliseconds
    stages = profile.stage_ms[segment.first :, 0].copy()
    stages[:-1] -= profile.compaction_ms[segment.first :, 0]
    expected = (np.maximum(stages, 0) * reach[segment.first :]).sum() / reach[segment.first]
    return np.concatenate([[max(expected, 0.05 * milliseconds[0])], milliseconds[1:]])


def _split_ms(profile: StageProfile, segment: Segment) -> Float[np.ndarray, " S"]:
    """Time that a program adds if it is one of several: its images join those of another."""
    total = np.full(len(profile.sizes), _PROGRAM_MS)
    if segment.last < len(profile.stage_ms) - 1:
        total += profile.compaction_ms[segment.last]
    return total


def all_segments(num_exits: int) -> list[Segment]:
    """Lists every range of stages, from single stages to the full network."""
    return [Segment(i, j) for i in range(num_exits) for j in range(i, num_exits)]


def reach_fractions(
    exit_fractions: Float[np.ndarray, " E"] | None, active_exits: Bool[np.ndarray, " E"]
) -> Float[np.ndarray, " E"]:
    """Fraction of the images that reach each stage.

    Args:
      exit_fractions: fraction of the images that leave at each exit. If None, the images are
        assumed to leave in equal numbers at all active exits.
      active_exits: exits at which an image can leave.
    """
    leaving = active_exits / active_exits.sum() if exit_fractions is None else exit_fractions
    return np.clip(1.0 - np.cumsum(leaving) + leaving, 0.0, 1.0)
