"""How the workers of a stream compute: segments and batch sizes, from the classifier's profile."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.background import full_network_sizes
from imta_jax.inference.engine.engine import Engine
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import Segment

# A batch is full when a larger one saves at most this fraction of the time per image.
_TIME_TOLERANCE = 0.03
_SIZE_RATIO = 3  # least ratio of two batch sizes


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """Settings that all workers of a stream share.

    Attributes:
      engine: compiled for every segment at all batch sizes.
      segments: in order.
      batch_sizes: per segment.
      full_batch: number of images for which a segment waits.
      num_workers: workers that compute at the same time.
    """

    engine: Engine
    segments: tuple[Segment, ...]
    batch_sizes: tuple[BatchSizes, ...]
    full_batch: int
    num_workers: int

    @property
    def capacity(self) -> int:
        """Images that a worker holds: an almost full queue per segment, and new images."""
        return self.full_batch * (len(self.segments) + 1)

    @classmethod
    def full_network(
        cls, classifier: AdaptiveClassifier, *, only_smallest: bool = False
    ) -> "WorkerSettings":
        """The full network as one segment, until the stages are measured; compiles the programs.

        The exits are those of early exit, but every image takes the time of all stages.

        Args:
          classifier: provides network, thresholds and batch sizes.
          only_smallest: whether to compile the smallest batch size only, which is ready first.
        """
        engine, segment = classifier.engine, Segment(0, classifier.network.num_exits - 1)
        sizes = full_network_sizes(classifier.profile.sizes)[: 1 if only_smallest else None]
        batch_sizes = BatchSizes(sizes, np.asarray(sizes, float), sizes[-1])
        engine.compile([(segment, size) for size in sizes])
        return cls(engine, (segment,), (batch_sizes,), sizes[-1], classifier.num_workers)

    @classmethod
    def from_classifier(cls, classifier: AdaptiveClassifier) -> "WorkerSettings":
        """Derives the settings from the classifier's profile and plan; compiles the programs."""
        sizes = classifier.profile.sizes
        segments = classifier.plan_for(sizes[-1]).segments
        milliseconds = [classifier.profile.segment_ms(segment) for segment in segments]
        per_image = np.sum(milliseconds, axis=0) / sizes
        full = int(np.flatnonzero(per_image <= (1 + _TIME_TOLERANCE) * per_image.min())[0])
        chosen, limit = _few(sizes[: full + 1]), sizes[full]
        indices = [sizes.index(size) for size in chosen]
        engine = classifier.engine
        batch_sizes = [BatchSizes(chosen, ms[indices], limit) for ms in milliseconds]
        engine.compile(
            (segment, size)
            for segment, of_segment in zip(segments, batch_sizes, strict=True)
            for size in of_segment.used
        )
        for before, after, segment in zip(batch_sizes, batch_sizes[1:], segments[1:], strict=False):
            engine.compile_merges(segment.first, before, after)
        return cls(engine, segments, tuple(batch_sizes), limit, classifier.num_workers)


def _few(sizes: Sequence[int]) -> list[int]:
    """The largest size, and smaller ones with gaps: programs are compiled for pairs of sizes."""
    chosen = [sizes[-1]]
    for size in reversed(sizes):
        if size <= chosen[0] / _SIZE_RATIO:
            chosen.insert(0, size)
    return chosen
