"""How the workers of a stream compute: segments and batch sizes, from the classifier's profile."""

import dataclasses

import numpy as np

from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.engine import Engine
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import Segment

# A batch is full when a larger one saves at most this fraction of the time per image.
_TIME_TOLERANCE = 0.03


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

    @classmethod
    def from_classifier(cls, classifier: AdaptiveClassifier) -> "WorkerSettings":
        """Derives the settings from the classifier's profile and plan; compiles the programs."""
        sizes = classifier.profile.sizes
        segments = classifier.plan_for(sizes[-1]).segments
        milliseconds = [classifier.profile.segment_ms(segment) for segment in segments]
        per_image = np.sum(milliseconds, axis=0) / sizes
        full = int(np.flatnonzero(per_image <= (1 + _TIME_TOLERANCE) * per_image.min())[0])
        sizes, limit = sizes[: full + 1], sizes[full]
        # Slots for an almost full queue before every segment, and for a batch of new images.
        programs = classifier.programs_for(limit * (len(segments) + 1))
        engine = Engine(programs, classifier.thresholds)
        batch_sizes = [BatchSizes(sizes, ms[: full + 1], limit) for ms in milliseconds]
        engine.compile(
            (segment, size)
            for segment, of_segment in zip(segments, batch_sizes, strict=True)
            for size in of_segment.used
        )
        for before, after, segment in zip(batch_sizes, batch_sizes[1:], segments[1:], strict=False):
            engine.compile_buffers(segment.first, before, after)
        return cls(engine, segments, tuple(batch_sizes), limit, classifier.num_workers)
