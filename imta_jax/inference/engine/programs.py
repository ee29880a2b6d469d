"""Compiled segments: programs that run one or more stages, and those that compact the batch.

A *segment* is a range of stages that are compiled together, for a few batch sizes. Its program runs
the stages and decides which images exit. Between two segments, a program gathers the images that
continue (`compaction`): there is no recompilation, one host sync per program, and no copy of images
that exit.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from imta_jax.inference.engine.compaction import (
    IMAGES_FIRST,
    IMAGES_LAST,
    State,
    flattened,
    gather_state,
    merge_state,
    shapes_of,
)
from imta_jax.inference.engine.staged import ScoredStage, StagedNetwork, Weights
from imta_jax.runtime.parallel_compilation import compile_all

# Without this option, a bfloat16 sum that is not stored keeps float32 precision, and the confidence
# of an image depends on how the network is split into segments.
COMPILER_OPTIONS = {"xla_allow_excess_precision": False}
# Bit of an output's exit index that marks an image that continues to the next segment.
CONTINUES = 1 << 16


class Segment(NamedTuple):
    """Stages `first` to `last`, both included, counted from 0. Images exit only at its end."""

    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class ProgramKey:
    """What a program of a segment is compiled for.

    Attributes:
      segment: stages of the segment.
      active_exits: per stage but the last, whether an image can exit there.
      batch_size: number of images.
      dtype: dtype of the images. Only the first segment's programs depend on it.
    """

    segment: Segment
    active_exits: tuple[bool, ...]
    batch_size: int
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class GatherKey:
    """What a program that gathers images is compiled for.

    Attributes:
      stage: index of the stage that reads the images, from 1.
      source_size: number of images in the state that they are gathered from.
      batch_size: number of images gathered.
    """

    stage: int
    source_size: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class MergeKey:
    """What a program that adds images of a second state to a batch is compiled for.

    Attributes:
      stage: index of the stage that reads the images, from 1.
      source_size: number of images in the second state.
      batch_size: number of images in the batch.
    """

    stage: int
    source_size: int
    batch_size: int


Key = ProgramKey | GatherKey | MergeKey
StateShapes = tuple[jax.ShapeDtypeStruct, ...]


class Programs:
    """The compiled programs of a network. Thresholds are program arguments.

    Args:
      network: the network to compile.

    Attributes:
      num_compiled: number of programs compiled so far.
      flat: whether maps between programs are [N, H*W*C], as on accelerators. TPUs copy maps
        [N, H, W, C] into other layouts in every program (`docs/results/accelerators_log.md`).
    """

    def __init__(self, network: StagedNetwork):
        self.network = network
        self.flat = jax.default_backend() != "cpu" and network.images_last is None
        self.num_compiled = 0
        self._lock = threading.Lock()
        # Several workers may request a program: the first one compiles it.
        self._compiled: dict[Key, Future[jax.stages.Compiled]] = {}

    def get(self, keys: Sequence[Key]) -> list[jax.stages.Compiled]:
        """Returns the programs, after compiling the missing ones in parallel."""
        if not all(key in self._compiled for key in keys):
            self._compile(keys)
        return [self._compiled[key].result() for key in keys]

    def is_ready(self, keys: Sequence[Key]) -> bool:
        """Whether all programs are compiled."""
        return all(key in self._compiled and self._compiled[key].done() for key in keys)

    def _compile(self, keys: Sequence[Key]) -> None:
        """Compiles the programs that nobody compiles yet."""
        with self._lock:
            own = [key for key in dict.fromkeys(keys) if key not in self._compiled]
            futures: list[Future[jax.stages.Compiled]] = [Future() for _ in own]
            self._compiled.update(zip(own, futures, strict=True))
        try:
            compiled = compile_all([self._lower(key) for key in own])
        except BaseException as error:
            with self._lock:  # the next request tries again
                for key, future in zip(own, futures, strict=True):
                    del self._compiled[key]
                    future.set_exception(error)
            raise
        for future, program in zip(futures, compiled, strict=True):
            future.set_result(program)
        self.num_compiled += len(own)

    def state_shapes(self, stage: int, batch_size: int) -> StateShapes:
        """Shapes of the arrays that a stage (from 1) reads."""
        shapes = self.network.state_shapes(batch_size)[stage - 1]
        return shapes_of(jax.eval_shape(flattened, shapes) if self.flat else shapes)

    def layout(self, batch_size: int) -> str:
        """Axes of the maps of a batch of this size."""
        return IMAGES_LAST if self.network.has_images_last(batch_size) else IMAGES_FIRST

    def _lower(self, key: Key) -> jax.stages.Lowered:
        if isinstance(key, ProgramKey):
            return self._lower_segment(key)
        if isinstance(key, GatherKey):
            return self._lower_gather(key)
        return self._lower_merge(key)

    def _lower_segment(self, key: ProgramKey) -> jax.stages.Lowered:
        first, following = key.segment.first, key.segment.last + 1
        size = key.batch_size
        images = (jax.ShapeDtypeStruct((size, *self.network.image_shape), key.dtype),)
        stages = self.network.scored_stages(size)
        run = functools.partial(_run_segment, stages, key.segment, key.active_exits)
        if self.flat:
            maps = self.network.state_shapes(size)[first - 1] if first else images
            run = functools.partial(_run_on_flat_maps, run, maps)
        return jax.jit(run, compiler_options=COMPILER_OPTIONS).lower(
            self.network.weights_for(size)[first:following],
            jax.ShapeDtypeStruct((self.network.num_exits,), np.float32),
            self.state_shapes(first, size) if first else images,
        )

    def _lower_gather(self, key: GatherKey) -> jax.stages.Lowered:
        layouts = {"source": self.layout(key.source_size), "target": self.layout(key.batch_size)}
        return jax.jit(functools.partial(gather_state, **layouts)).lower(
            self.state_shapes(key.stage, key.source_size),
            jax.ShapeDtypeStruct((key.batch_size,), np.int32),
        )

    def _lower_merge(self, key: MergeKey) -> jax.stages.Lowered:
        layouts = {"source": self.layout(key.source_size), "target": self.layout(key.batch_size)}
        return jax.jit(functools.partial(merge_state, **layouts), donate_argnums=0).lower(
            self.state_shapes(key.stage, key.batch_size),
            self.state_shapes(key.stage, key.source_size),
            jax.ShapeDtypeStruct((key.batch_size,), np.int32),
            jax.ShapeDtypeStruct((), np.int32),
        )


def _run_on_flat_maps(
    run: Callable[..., tuple[jax.Array, State]],
    shapes: Sequence[jax.ShapeDtypeStruct],
    weights: tuple[Weights, ...],
    thresholds: Float32[Array, " E"],
    state: State,
) -> tuple[Int32[Array, "3 N"], State]:
    """Runs a segment on a flattened state.

    Args:
      run: `_run_segment` with the first three arguments.
      shapes: shapes of the arrays that the segment reads.
      weights: see `_run_segment`.
      thresholds: see `_run_segment`.
      state: the arrays, flattened.
    """
    maps = tuple(x.reshape(shape.shape) for x, shape in zip(state, shapes, strict=True))
    predictions, state = run(weights, thresholds, maps)
    return predictions, flattened(state)


def _run_segment(
    stages: tuple[ScoredStage, ...],
    segment: Segment,
    active_exits: tuple[bool, ...],
    weights: tuple[Weights, ...],
    thresholds: Float32[Array, " E"],
    state: tuple[Shaped[Array, "..."], ...],
) -> tuple[Int32[Array, "3 N"], tuple[Shaped[Array, "..."], ...]]:
    """The program of a segment, to be traced.

    For a single image the last segment skips the stages after the exit of the image: the device
    decides, without a host sync.

    Args:
      stages: stages of the network, with its exit rule.
      segment: the stages to run.
      active_exits: per stage of the segment but the last, whether its exit is evaluated.
      weights: per stage of the segment.
      thresholds: thresholds on the score of the exit rule, per exit.
      state: the images [N, H, W, C] at the first segment, else the state of N images.

    Returns:
      Labels, exits and the bits of the confidences; the state for the next segment.
    """
    active = (*active_exits, True)
    ends_network = segment.last == len(stages) - 1

    def run_from(i: int, state: Any, predictions: _Predictions | None) -> tuple[_Predictions, Any]:
        state, logits, score = stages[i](weights[i - segment.first], state)
        # XLA removes the head of an inactive exit unless a later exit reads its logits.
        if active[i - segment.first]:
            predictions = _decide(predictions, i, logits, score, thresholds[i])
        if i == segment.last:
            assert predictions is not None  # the last exit is active
            return predictions, () if ends_network else state
        if (
            predictions is not None
            and active[i - segment.first]
            and ends_network
            and len(logits) == 1
        ):
            final = predictions
            return jax.lax.cond(
                predictions.exited[0], lambda: (final, ()), lambda: run_from(i + 1, state, final)
            )
        return run_from(i + 1, state, predictions)

    predictions, state = run_from(segment.first, state, None)
    exits = predictions.exits | jnp.where(predictions.exited, 0, CONTINUES)
    bits = jax.lax.bitcast_convert_type(predictions.confidence, jnp.int32)
    return jnp.stack([predictions.labels, exits, bits]), state


class _Predictions(NamedTuple):
    """Predictions so far, and whether each image has exited."""

    labels: Int32[Array, " N"]
    exits: Int32[Array, " N"]
    confidence: Float32[Array, " N"]
    exited: Bool[Array, " N"]


def _decide(
    earlier: _Predictions | None,
    i: int,
    logits: Float[Array, "N K"],
    score: Float[Array, " N"] | None,
    threshold: Float32[Array, ""],
) -> _Predictions:
    """Predictions after exit i: those of the images that have not exited are new."""
    probability = jax.nn.softmax(logits).max(axis=-1)
    # Not `>=`: an image with a NaN score exits at once.
    leaves = ~((probability if score is None else score) < threshold)
    at_exit = jnp.full(leaves.shape, i, jnp.int32)
    new = (logits.argmax(axis=-1).astype(jnp.int32), at_exit, probability)
    if earlier is None:
        return _Predictions(*new, leaves)
    labels, exits, confidence = (
        jnp.where(earlier.exited, x, y) for x, y in zip(earlier[:3], new, strict=True)
    )
    return _Predictions(labels, exits, confidence, earlier.exited | leaves)
