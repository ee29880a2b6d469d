"""Classifies a batch of images with early exit, segment by segment."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32, Shaped

from imta_jax.inference.engine.buffers import Buffers
from imta_jax.inference.engine.engine import Engine, SegmentOutput
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import Segment

# Labels, exits and confidences.
Predictions = tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"], Float32[np.ndarray, " N"]]
# Output of a program and the positions in the batch of its images.
_Part = tuple[SegmentOutput, Int[np.ndarray, " n"]]


class BatchRun:
    """A batch in progress.

    Args:
      engine: compiled programs and thresholds.
      buffers: buffers of this run alone, for the images of segments that ran as several programs.
      images: [N, H, W, C], validated; at most as many as the buffers hold.
    """

    def __init__(self, engine: Engine, buffers: Buffers, images: Shaped[np.ndarray, "N H W C"]):
        self._engine, self._buffers, self._images = engine, buffers, images
        count = len(images)
        self._labels, self._exits = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._confidence = np.zeros(count, np.float32)
        self._active = np.arange(count)  # positions of the images that have not exited
        # Where the state of the active images is: an output or the buffers, and indices in it.
        self._source: SegmentOutput | Buffers = buffers
        self._indices = np.arange(count)

    def predict(
        self, segments: Sequence[Segment], batch_sizes: Mapping[Segment, BatchSizes]
    ) -> Predictions:
        """Runs the segments until all images have exited."""
        for segment in segments:
            parts = self._start(segment, batch_sizes[segment])
            kept = [self._finish(output, positions) for output, positions in parts]
            self._active = np.concatenate(
                [positions[keep] for (_, positions), keep in zip(parts, kept, strict=True)]
            )
            if not len(self._active):
                break
            self._compact(segment.last + 1, [output for output, _ in parts], kept)
        return self._labels, self._exits, self._confidence

    def _start(self, segment: Segment, batch_sizes: BatchSizes) -> list[_Part]:
        """Starts the programs that compute a segment for all active images."""
        parts, begin = [], 0
        for size in batch_sizes.split(len(self._active)):
            own = slice(begin, begin + size)
            if segment.first == 0:
                output = self._engine.run_images(segment, size, self._images[own])
            else:
                state = self._engine.gather(segment.first, self._source, self._indices[own], size)
                output = self._engine.run(segment, size, state)
            parts.append((output, self._active[own]))
            begin += size
        return parts

    def _finish(
        self, output: SegmentOutput, positions: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " k"]:
        """Waits for a program; returns the indices of its images that continue."""
        predictions = self._engine.fetch(output, len(positions))
        # Images that continue are overwritten after the next segment.
        self._labels[positions], self._exits[positions] = predictions.labels, predictions.exit
        self._confidence[positions] = predictions.confidence
        return np.flatnonzero(~predictions.exited)

    def _compact(
        self, stage: int, outputs: Sequence[SegmentOutput], kept: Sequence[np.ndarray]
    ) -> None:
        """Prepares the state of the active images for a stage."""
        if len(outputs) == 1:
            (self._source,), (self._indices,) = outputs, kept
            return
        begin = 0
        for output, keep in zip(outputs, kept, strict=True):
            slots = np.full(output.batch_size, self._engine.capacity)
            slots[keep] = np.arange(begin, begin + len(keep))
            begin += len(keep)
            if len(keep):
                self._engine.store(stage, output, self._buffers, slots)
        self._source, self._indices = self._buffers, np.arange(begin)
