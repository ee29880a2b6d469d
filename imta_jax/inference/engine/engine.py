"""The early-exit engine: runs compiled segments with thresholds."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from imta_jax.evaluation.thresholds import NEVER_LEAVE
from imta_jax.inference.engine.compaction import State
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import (
    CONTINUES,
    GatherKey,
    Key,
    MergeKey,
    ProgramKey,
    Programs,
    Segment,
)
from imta_jax.inference.engine.staged import StagedNetwork

# A softmax probability exceeds 1 by rounding only. No image exits at a threshold above this value.
_MAX_CONFIDENCE = 1.0 + 1e-5
# Scores of other exit rules are below the threshold that marks an exit without images.
_MAX_SCORE = np.nextafter(np.float32(NEVER_LEAVE), np.float32(0))


class SegmentPredictions(NamedTuple):
    """Predictions of a segment for its images, in their order.

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


class SegmentOutput(NamedTuple):
    """The results of a program, on the device.

    Attributes:
      predictions: int32 [3, B]; `Engine.fetch` reads them.
      state: state for the next segment.
      batch_size: B, the batch size of the program.
    """

    predictions: Int32[Array, "3 B"]
    state: State
    batch_size: int


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
        self.network = programs.network
        self.thresholds = thresholds.copy()
        self.thresholds[-1] = -np.inf
        self.active_exits = self.thresholds <= max_score(self.network)

    def compile(self, programs: Iterable[tuple[Segment, int]]) -> None:
        """Compiles (segment, batch size) programs for images of the network's dtype."""
        dtype = self.network.image_dtype
        self.programs.get([self.key(segment, size, dtype) for segment, size in programs])

    def compile_compaction(self, stage: int, sources: BatchSizes, sizes: BatchSizes) -> None:
        """Compiles the programs that bring images from outputs to a stage.

        Args:
          stage: index of the stage that reads the images, from 1.
          sources: batch sizes of the segment before.
          sizes: batch sizes of the segment that starts with the stage.
        """
        # Several sources are only needed where a segment runs as several programs.
        if sources.is_split:
            self.compile_merges(stage, sources, sizes)
            return
        self.programs.get([GatherKey(stage, n, m) for n in sources.used for m in sizes.used_for(n)])

    def compile_merges(self, stage: int, sources: BatchSizes, sizes: BatchSizes) -> None:
        """Compiles the programs that bring images of several outputs to a stage.

        The arguments are those of `compile_compaction`.
        """
        pairs = [(n, m) for n in sources.used for m in sizes.used]
        keys: list[Key] = [MergeKey(stage, n, m) for n, m in pairs]
        self.programs.get(keys + [GatherKey(stage, n, m) for n, m in pairs])

    def run_images(self, segment: Segment, batch_size: int, images: np.ndarray) -> SegmentOutput:
        """Starts the first segment on the device. `fetch` waits for the result.

        Args:
          segment: the stages to run, from the first.
          batch_size: batch size of the program.
          images: [n, H, W, C] of the network's dtype, or normalized floats; n <= batch_size.
        """
        (program,) = self.programs.get([self.key(segment, batch_size, images.dtype)])
        return self._run(program, segment, batch_size, (_pad(images, batch_size),))

    def run(self, segment: Segment, batch_size: int, state: State) -> SegmentOutput:
        """Starts a later segment on the device. `fetch` waits for the result."""
        key = self.key(segment, batch_size, self.network.image_dtype)
        (program,) = self.programs.get([key])
        return self._run(program, segment, batch_size, state)

    def gather(
        self, stage: int, source: SegmentOutput, indices: np.ndarray, batch_size: int
    ) -> State:
        """The state of some images, in the layout and size of the next program.

        Args:
          stage: index of the stage that will read it, from 1.
          source: output of the segment before.
          indices: [n] of the images in the source, n <= batch_size.
          batch_size: batch size of the next program. Missing images are padding.
        """
        # Padding after the images may be anything, so a state that stays complete is not copied.
        in_place = np.array_equal(indices, np.arange(len(indices)))
        if source.batch_size == batch_size and in_place:
            return source.state
        (program,) = self.programs.get([GatherKey(stage, source.batch_size, batch_size)])
        padded = np.full(batch_size, indices[0], np.int32)
        padded[: len(indices)] = indices
        return program(source.state, padded)

    def collect(
        self, stage: int, parts: Sequence[tuple[SegmentOutput, np.ndarray]], batch_size: int
    ) -> State:
        """Like `gather`, of images of several outputs.

        Args:
          stage: index of the stage that will read the state, from 1.
          parts: outputs, each with the indices of its images, at most `batch_size` in all.
          batch_size: batch size of the next program.
        """
        (output, indices), *others = parts
        state, begin = self.gather(stage, output, indices, batch_size), len(indices)
        for output, indices in others:
            (program,) = self.programs.get([MergeKey(stage, output.batch_size, batch_size)])
            positions = np.full(batch_size, indices[0], np.int32)
            positions[begin : begin + len(indices)] = indices
            state = program(state, output.state, positions, np.int32(begin))
            begin += len(indices)
        return state

    def _run(
        self,
        program: jax.stages.Compiled,
        segment: Segment,
        batch_size: int,
        state: tuple[Any, ...],
    ) -> SegmentOutput:
        weights = self.network.weights_for(batch_size)[segment.first : segment.last + 1]
        predictions, state = program(weights, self.thresholds, state)
        return SegmentOutput(predictions, state, batch_size)

    def fetch(self, output: SegmentOutput, count: int) -> SegmentPredictions:
        """Waits for a program and returns the predictions of its first `count` images."""
        labels, exits, confidence = np.asarray(output.predictions)[:, :count]
        return SegmentPredictions(
            labels, exits & ~CONTINUES, confidence.view(np.float32), exits < CONTINUES
        )

    def key(self, segment: Segment, batch_size: int, dtype: np.dtype) -> ProgramKey:
        """The key of a segment's program."""
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
