"""Adaptive inference that really stops: images leave at their exit, the others go on without them.

`AdaptiveClassifier` answers whole batches; `stream` keeps images coming. Both run the same engine.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from imta_jax.inference.engine.engine import (
    COMPILER_OPTIONS,
    Answers,
    Engine,
    Pools,
    Programs,
    Segment,
)
from imta_jax.inference.engine.planning import BatchSizes, Plan, all_segments, best_plan, reach_of
from imta_jax.inference.engine.profile import (
    StageProfile,
    assumed_profile,
    kept_profile,
    measured_profile,
)
from imta_jax.inference.engine.staged import StagedNetwork
from imta_jax.runtime.environment import usable_cores

if TYPE_CHECKING:
    from imta_jax.models import MultiExitClassifier

# Images below which a batch is not split into lanes.
_LEAST_PER_LANE = 8


class AdaptivePredictions(NamedTuple):
    """What adaptive inference answers, per image.

    Attributes:
      labels: int32 [N], predicted class.
      exit: int32 [N], index from 0 of the exit that answered.
      confidence: float32 [N], highest softmax probability there.
      macs: int64 [N], multiply-adds until that exit.
    """

    labels: np.ndarray
    exit: np.ndarray
    confidence: np.ndarray
    macs: np.ndarray


class AdaptiveClassifier:
    """Runs a multi-exit network and lets images leave where they are confident, on one device.

    The first call compiles what it needs; `warm_up` compiles everything and measures what stages
    cost, so that nothing is compiled later and exits at which stopping does not pay are passed.
    What was measured on this device before is used without being asked for.

    Args:
      network: a trained classifier, phase I or II (its weights are copied), or a `StagedNetwork`
        (which knows its pixels and its type: `mean`, `std` and `dtype` are not for it).
      thresholds: [E]; an image leaves at the first exit whose confidence (highest softmax
        probability) is at least the threshold; the last exit takes all that come.
      mean: of the pixels per channel, 0..1; with `std`, lets `predict` take uint8 images.
      std: likewise.
      max_batch_size: images computed together; larger batches are cut.
      batch_sizes: of the compiled programs; default, powers of two up to a lane's share of
        `max_batch_size`.
      lanes: parts of a batch that are computed at a time, each on its own; default, two on a
        processor of several cores, which one program alone does not keep busy, else one.
      exit_fractions: [E], the share of images expected to leave at each exit (`results.json` has
        them): they decide where stopping pays. Unknown by default.
      dtype: in which the backbone computes, "float32" or "bfloat16".
      profile_dir: where measured profiles are kept; default ~/.cache/imta_jax/profiles.

    Raises:
      ValueError: thresholds or fractions of another number of exits or not numbers, a batch size
        below 1, an unknown `dtype`.
    """

    def __init__(
        self,
        network: "MultiExitClassifier | StagedNetwork",
        thresholds: Sequence[float] | np.ndarray,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        max_batch_size: int = 256,
        batch_sizes: Sequence[int] | None = None,
        lanes: int | None = None,
        exit_fractions: Sequence[float] | np.ndarray | None = None,
        dtype: Any = "float32",
        profile_dir: str | Path | None = None,
    ):
        self._given = _checked_decisions(thresholds, exit_fractions, network.num_exits)
        self.lanes = _checked_lanes(lanes, max_batch_size)
        capacity = -(-max_batch_size // self.lanes)
        self._sizes = _checked_sizes(capacity, batch_sizes)
        if not isinstance(network, StagedNetwork):
            # Needs Flax and the model code, which an exported network does without.
            from imta_jax.inference.engine.classifier_stages import staged_classifier

            network = staged_classifier(network, mean=mean, std=std, dtype=dtype)
        self.network, self.max_batch_size = network, max_batch_size
        self.macs = network.macs
        self.programs = Programs(network, capacity)
        self._profile_dir = profile_dir
        self._programs_by_capacity = {capacity: self.programs}
        self._pools = [Pools(network, capacity) for _ in range(self.lanes)]
        self._threads = ThreadPoolExecutor(self.lanes, "imta_jax lane")
        self._busy = threading.Lock()
        self._whole = jax.jit(network.logits, compiler_options=COMPILER_OPTIONS)
        kept = kept_profile(self.programs, self._sizes, self.lanes, profile_dir)
        self.profile = kept or assumed_profile(network, self._sizes)
        self._plan()

    def with_thresholds(
        self,
        thresholds: Sequence[float] | np.ndarray,
        *,
        exit_fractions: Sequence[float] | np.ndarray | None = None,
    ) -> "AdaptiveClassifier":
        """The same network with other thresholds: for another budget, without another copy.

        Weights, compiled programs and the profile are shared; what else its plan needs is compiled
        at first use, or by `warm_up`.
        """
        other = copy.copy(self)
        other._given = _checked_decisions(thresholds, exit_fractions, self.network.num_exits)
        other._plan()
        return other

    def measure(self) -> StageProfile:
        """Measures what stages cost here, or reads what was measured before.

        Returns:
          The profile in use from now on.
        """
        self.profile = measured_profile(self.programs, self._sizes, self.lanes, self._profile_dir)
        self._plan()
        return self.profile

    def warm_up(self) -> StageProfile:
        """As `measure`, and compiles all that `predict` can need for images of the network's type.

        Where that is uint8, normalised floats compile other programs at their first call.
        """
        self.measure()
        segments = {segment for plan in self.plans.values() for segment in plan.segments}
        self.engine.prepare(
            (segment, size) for segment in segments for size in self.batch_sizes[segment].used
        )
        for stage in {segment.first for segment in segments} - {0}:
            for pools in self._pools:
                pools.take(stage)
        return self.profile

    def predict(self, images: np.ndarray | jax.Array) -> AdaptivePredictions:
        """Classifies images, each by the first exit that is confident enough.

        Args:
          images: [N, H, W, C], normalised floats, or uint8 where `mean` and `std` were given. There
            floats are taken too, but not by the same programs: the first of them compile theirs,
            after `warm_up` as before.

        Raises:
          ValueError: images of another shape or type, or with pixels that are not finite.
        """
        images = self.network.checked(images)
        limit = self.max_batch_size
        none = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        chunks = [self._predict(images[i : i + limit]) for i in range(0, len(images), limit)]
        labels, exits, confidence = map(np.concatenate, zip(none, *chunks, strict=True))
        return AdaptivePredictions(labels, exits, confidence, self.macs[exits])

    def logits(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Logits [E, N, K] float32 of all exits, in the type that `predict` computes in.

        What thresholds are to be chosen on, and what `predict` is to be compared with.
        """
        images, limit = self.network.checked(images), self.max_batch_size
        starts = range(0, max(len(images), 1), limit)
        chunks = [self._whole(self.network.weights, images[i : i + limit]) for i in starts]
        return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)

    def programs_for(self, capacity: int) -> Programs:
        """Programs for pools of another size, as streams have them; made once."""
        if capacity not in self._programs_by_capacity:
            self._programs_by_capacity[capacity] = Programs(self.network, capacity)
        return self._programs_by_capacity[capacity]

    def plan_for(self, count: int) -> Plan:
        """How a lane runs `count` images."""
        return self.plans[max(size for size in self._sizes if size <= max(count, self._sizes[0]))]

    def _plan(self) -> None:
        """Decides by the profile how batches of every size are run."""
        self.thresholds, exit_fractions = self._given
        self.engine = Engine(self.programs, self.thresholds)
        reach = reach_of(exit_fractions, self.engine.listening)
        self.batch_sizes: dict[Segment, BatchSizes] = {
            segment: BatchSizes(self._sizes, self.profile.segment_ms(segment), self.engine.capacity)
            for segment in all_segments(self.network.num_exits)
        }
        self.plans = {
            size: best_plan(self.profile, size, reach, self.batch_sizes) for size in self._sizes
        }

    def _predict(self, images: np.ndarray) -> list[np.ndarray]:
        """One batch of at most the largest size, its parts in lanes: labels, exits, confidences."""
        needed = -(-len(images) // self.engine.capacity)
        lanes = max(needed, min(self.lanes, len(images) // _LEAST_PER_LANE))
        with self._busy:
            if lanes == 1:
                return self._predict_in_lane(self._pools[0], images)
            parts = np.array_split(images, lanes)
            working = [
                self._threads.submit(self._predict_in_lane, pools, part)
                for pools, part in zip(self._pools, parts, strict=False)
            ]
            try:
                answered = [lane.result() for lane in working]
            finally:
                wait(working)  # interrupted or not: the pools are free when the lock is
        return [np.concatenate(column) for column in zip(*answered, strict=True)]

    def _predict_in_lane(self, pools: Pools, images: np.ndarray) -> list[np.ndarray]:
        count = len(images)
        labels, exits = np.zeros(count, np.int32), np.zeros(count, np.int32)
        confidence = np.zeros(count, np.float32)
        waiting = np.arange(count)
        for segment in self.plan_for(count).segments:
            staying = []
            for rows, answers in self._run(pools, segment, waiting, images):
                # Who stays is overwritten at the next exit.
                labels[rows], exits[rows], confidence[rows] = answers[:3]
                staying.append(rows[~answers.done])
            waiting = np.concatenate(staying)
            if not len(waiting):
                break
        return [labels, exits, confidence]

    def _run(
        self, pools: Pools, segment: Segment, waiting: np.ndarray, images: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Answers]]:
        """A segment on all that wait: rows and answers, program by program."""
        started, at = [], 0
        for size in self.batch_sizes[segment].pieces(len(waiting)):
            rows = waiting[at : at + size]
            opened = images[rows[0] : rows[-1] + 1] if segment.first == 0 else None
            started.append((rows, self.engine.start(pools, segment, size, rows, opened)))
            at += size
        for rows, answers in started:
            yield rows, self.engine.finish(answers, len(rows))


def _checked_decisions(
    thresholds: Any, exit_fractions: Any, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Thresholds and, where they are known, the shares of images that leave at each exit."""
    thresholds = _checked_per_exit("thresholds", thresholds, count)
    if exit_fractions is not None:
        exit_fractions = _checked_per_exit("exit_fractions", exit_fractions, count)
        if (exit_fractions < 0).any() or exit_fractions.sum() > 1.001:
            raise ValueError(
                f"exit_fractions must be shares from 0 that sum to 1; found {exit_fractions}"
            )
    return thresholds, exit_fractions


def _checked_per_exit(name: str, values: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape != (count,):
        raise ValueError(
            f"{name}: expected one for each of the {count} exits; found shape {values.shape}: "
            "are they of another network?"
        )
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers; found {values}")
    return values


def _checked_lanes(lanes: int | None, max_batch_size: int) -> int:
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size must be at least 1; found {max_batch_size}")
    if lanes is None:
        several = jax.default_backend() == "cpu" and usable_cores() > 1
        return 2 if several and max_batch_size >= 2 * _LEAST_PER_LANE else 1
    if not 1 <= lanes <= max_batch_size:
        raise ValueError(f"lanes must be from 1 to max_batch_size, {max_batch_size}; found {lanes}")
    return lanes


def _checked_sizes(limit: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """Batch sizes, rising; by default powers of two below `limit`, and `limit`."""
    if sizes is None:
        return (*(2**n for n in range((limit - 1).bit_length())), limit)
    if not len(sizes) or min(sizes) < 1 or max(sizes) > limit:
        raise ValueError(
            f"batch_sizes must lie between 1 and {limit}, a lane's share of max_batch_size; "
            f"found {tuple(sizes)}"
        )
    return tuple(sorted({int(size) for size in sizes}))
