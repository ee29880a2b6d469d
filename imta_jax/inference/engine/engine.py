"""The early-exit engine: runs compiled segments on buffers, with thresholds."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from imta_jax.evaluation.thresholds import NEVER_LEAVE
from imta_jax.inference.engine.buffers import Buffers
from imta_jax.inference.engine.programs import CONTINUES, ProgramKey, Programs, Segment
from imta_jax.inference.engine.staged import StagedNetwork

# A softmax probability exceeds 1 by rounding only. No image exits at a threshold above this value.
_MAX_CONFIDENCE = 1.0 + 1e-5
# Scores of other exit rules are below the threshold that marks an exit without images.
_MAX_SCORE = np.nextafter(np.float32(NEVER_LEAVE), np.float32(0))


class SegmentPredictions(NamedTuple):
    """What a segment predicts for its images, in their order.

    Attributes:
      labels: class predicted at `exit`.
      exit: the first exit of the segment whose score reached its threshold, or its last exit.
      confidence: highest softmax probability at `exit`.
      exited: whether the score reached the threshold.
    """

    labels: Int32[np.ndarray, " N"]
    exit: Int32[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    exited: Bool[np.ndarray, " N"]


class Engine:
    """Runs the segments of a network with fixed thresholds.

    Args:
      programs: compiled programs of the network.
      thresholds: per exit. The last exit accepts every image, whatever its threshold.

    Attributes:
      active_exits: bool [E], exits at which an image can exit.
    """

    def __init__(self, programs: Programs, thresholds: Float32[np.ndarray, " E"]):
        self.programs = programs
        self.network, self.capacity = programs.network, programs.capacity
        self.thresholds = thresholds.copy()
        self.thresholds[-1] = -np.inf
        self.active_exits = self.thresholds <= max_score(self.network)

    def new_buffers(self) -> Buffers:
        """Returns empty buffers for the engine's programs."""
        return Buffers(self.network, self.capacity)

    def compile(self, programs: Iterable[tuple[Segment, int]]) -> None:
        """Compiles (segment, batch size) programs for images of the network's dtype."""
        dtype = self.network.image_dtype
        self.programs.get([self._key(segment, size, dtype) for segment, size in programs])

    def dispatch(
        self,
        buffers: Buffers,
        segment: Segment,
        batch_size: int,
        slots: np.ndarray,
        images: np.ndarray | None = None,
    ) -> Int32[Array, "3 B"]:
        """Starts a segment on the device. `fetch` waits for the result.

        Args:
          buffers: hold the segment's input and receive the images that continue.
          segment: the stages to run.
          batch_size: of the program.
          slots: int [n], slots of the images, 1 <= n <= batch_size.
          images: [n, H, W, C] at the first segment, of the network's dtype, or normalized floats.

        Returns:
          The program's output on the device.
        """
        dtype = self.network.image_dtype if images is None else images.dtype
        (program,) = self.programs.get([self._key(segment, batch_size, dtype)])
        # A slot beyond the capacity reads the last slot and writes nothing.
        padded_slots = np.full(batch_size, self.capacity, np.int32)
        padded_slots[: len(slots)] = slots
        source = buffers.get(segment.first) if images is None else (_pad(images, batch_size),)
        following = segment.last + 1
        target = buffers.pop(following) if following < self.network.num_exits else ()
        weights = self.network.weights[segment.first : following]
        outputs, target = program(weights, self.thresholds, source, target, padded_slots)
        buffers.set(following, target)
        return outputs

    def fetch(self, outputs: Int32[Array, "3 B"], count: int) -> SegmentPredictions:
        """Waits for the output of `dispatch` and returns the predictions of `count` images."""
        labels, exits, confidence = np.asarray(outputs)[:, :count]
        return SegmentPredictions(
            labels, exits & ~CONTINUES, confidence.view(np.float32), exits < CONTINUES
        )

    def _key(self, segment: Segment, batch_size: int, dtype: np.dtype) -> ProgramKey:
        # The last exit of a segment is always evaluated, so one program serves all thresholds.
        active = tuple(bool(value) for value in self.active_exits[segment.first : segment.last])
        return ProgramKey(segment, active, batch_size, np.dtype(dtype))


def max_score(network: StagedNetwork) -> float:
    """The highest score that an exit rule can give, up to rounding."""
    return float(_MAX_CONFIDENCE if network.rule is None else _MAX_SCORE)


def _pad(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Appends zero images until there are `batch_size` of them."""
    if len(images) == batch_size:
        return images
    padding = np.zeros((batch_size - len(images), *images.shape[1:]), images.dtype)
    return np.concatenate([images, padding])
