"""Classifies a batch of images with early exit, segment by segment."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32, Shaped

from imta_jax.inference.engine.engine import Engine, SegmentOutput
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import Segment

# Labels, exits and confidences.
Predictions = tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"], Float32[np.ndarray, " N"]]
# Output of a program and the positions in the batch of its images.
_Running = tuple[SegmentOutput, Int[np.ndarray, " _"]]
# Output of a program and the indices of some of its images.
_Part = tuple[SegmentOutput, Int[np.ndarray, " _"]]


class BatchRun:
    """A batch in progress.

    Args:
      engine: compiled programs and thresholds.
      images: validated images, at most as many as the limit of the batch sizes.
    """

    def __init__(self, engine: Engine, images: Shaped[np.ndarray, "N H W C"]):
        self._engine, self._images = engine, images
        count = len(images)
        self._labels, self._exits = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._confidence = np.zeros(count, np.float32)
        self._active = np.arange(count)  # positions of the images that have not exited
        self._parts: list[_Part] = []  # the states of the active images, in the same order

    def predict(
        self, segments: Sequence[Segment], batch_sizes: Mapping[Segment, BatchSizes]
    ) -> Predictions:
        """Runs the segments until all images have exited."""
        for segment in segments:
            running = self._start(segment, batch_sizes[segment])
            self._parts = [self._finish(output, positions) for output, positions in running]
            self._active = np.concatenate(
                [
                    positions[kept]
                    for (_, positions), (_, kept) in zip(running, self._parts, strict=True)
                ]
            )
            if not len(self._active):
                break
        return self._labels, self._exits, self._confidence

    def _start(self, segment: Segment, batch_sizes: BatchSizes) -> list[_Running]:
        """Starts the programs that compute a segment for all active images."""
        running, begin = [], 0
        for size in batch_sizes.split(len(self._active)):
            own = slice(begin, begin + size)
            if segment.first == 0:
                output = self._engine.run_images(segment, size, self._images[own])
            else:
                parts = _slice_parts(self._parts, begin, begin + size)
                state = self._engine.collect(segment.first, parts, size)
                output = self._engine.run(segment, size, state)
            running.append((output, self._active[own]))
            begin += size
        return running

    def _finish(self, output: SegmentOutput, positions: Int[np.ndarray, " n"]) -> _Part:
        """Waits for a program; returns it with the indices of its images that continue."""
        predictions = self._engine.fetch(output, len(positions))
        # Images that continue are overwritten after the next segment.
        self._labels[positions], self._exits[positions] = predictions.labels, predictions.exit
        self._confidence[positions] = predictions.confidence
        return output, np.flatnonzero(~predictions.exited)


def _slice_parts(parts: Sequence[_Part], begin: int, end: int) -> list[_Part]:
    """The images from `begin` to `end`, counted over all parts."""
    slices = []
    for output, indices in parts:
        selected = indices[max(begin, 0) : max(end, 0)]
        if len(selected):
            slices.append((output, selected))
        begin, end = begin - len(indices), end - len(indices)
    return slices
