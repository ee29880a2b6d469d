"""Compiled segments: programs that run one or more stages and compact the batch.

A *segment* is a range of stages that are compiled together, for a few batch sizes. Its program
gathers the images from the segment's input buffers, runs the stages, decides which images exit, and
scatters the others into their slots of the next segment's buffers. The gather compacts the batch:
there is no recompilation, one host sync per program, and no copy of images that exit.
"""

import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Shaped

from imta_jax.inference.engine.buffers import BufferArrays, buffer_shapes
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


class ProgramKey(NamedTuple):
    """What a program is compiled for.

    Attributes:
      segment: its stages.
      active_exits: per stage but the last, whether an image can exit there.
      batch_size: number of images.
      dtype: of the images. Only the first segment's programs depend on it.
    """

    segment: Segment
    active_exits: tuple[bool, ...]
    batch_size: int
    dtype: np.dtype


class Programs:
    """The compiled programs of a network. Thresholds are program arguments.

    Args:
      network: the network to compile.
      capacity: number of slots in the buffers.

    Attributes:
      num_compiled: number of programs compiled so far.
    """

    def __init__(self, network: StagedNetwork, capacity: int):
        self.network, self.capacity = network, capacity
        self.num_compiled = 0
        self._lock = threading.Lock()  # several workers may request the same program
        self._buffer_shapes = buffer_shapes(network, capacity)
        self._compiled: dict[ProgramKey, jax.stages.Compiled] = {}

    def get(self, keys: Sequence[ProgramKey]) -> list[jax.stages.Compiled]:
        """Returns the programs, after compiling the missing ones in parallel."""
        if not all(key in self._compiled for key in keys):
            with self._lock:
                missing = [key for key in dict.fromkeys(keys) if key not in self._compiled]
                compiled = compile_all([self._lower(key) for key in missing])
                self._compiled.update(zip(missing, compiled, strict=True))
                self.num_compiled += len(missing)
        return [self._compiled[key] for key in keys]

    def _lower(self, key: ProgramKey) -> jax.stages.Lowered:
        first, following = key.segment.first, key.segment.last + 1
        images = (jax.ShapeDtypeStruct((key.batch_size, *self.network.image_shape), key.dtype),)
        stages = self.network.scored_stages()
        run = functools.partial(_run_segment, stages, key.segment, key.active_exits)
        return jax.jit(run, donate_argnums=3, compiler_options=COMPILER_OPTIONS).lower(
            self.network.weights[first:following],
            jax.ShapeDtypeStruct((self.network.num_exits,), np.float32),
            self._buffer_shapes.get(first, images),
            self._buffer_shapes.get(following, ()),
            jax.ShapeDtypeStruct((key.batch_size,), np.int32),
        )


def _run_segment(
    stages: tuple[ScoredStage, ...],
    segment: Segment,
    active_exits: tuple[bool, ...],
    weights: tuple[Weights, ...],
    thresholds: Float32[Array, " E"],
    source: tuple[Shaped[Array, "source ..."], ...],
    target: BufferArrays,
    slots: Int32[Array, " N"],
) -> tuple[Int32[Array, "3 N"], BufferArrays]:
    """The program of a segment, to be traced.

    Args:
      stages: of the network, with its exit rule.
      segment: the stages to run.
      active_exits: per stage of the segment but the last, whether its exit is evaluated.
      weights: per stage of the segment.
      thresholds: on the score of the exit rule, per exit.
      source: the images [N, H, W, C] at the first segment, else the input buffers [capacity, ...].
      target: the next segment's buffers [capacity, ...]; empty at the last segment.
      slots: of the images in the buffers. Slots beyond the capacity are padding.

    Returns:
      Labels, exits and the bits of the confidences; the updated target buffers.
    """
    state = tuple(x.at[slots].get(mode="clip") for x in source) if segment.first else source
    chex.assert_equal_shape_prefix([slots, *state], 1)
    exited = jnp.zeros(slots.shape, bool)
    labels, exits = (jnp.zeros(slots.shape, jnp.int32) for _ in range(2))
    confidence = jnp.zeros(slots.shape, jnp.float32)
    for i, active in enumerate((*active_exits, True), start=segment.first):
        state, logits, score = stages[i](weights[i - segment.first], state)
        # XLA removes the head of an inactive exit unless a later exit reads its logits.
        if active:
            probability = jax.nn.softmax(logits).max(axis=-1)
            labels = jnp.where(exited, labels, logits.argmax(axis=-1).astype(jnp.int32))
            confidence = jnp.where(exited, confidence, probability)
            exits = jnp.where(exited, exits, i)
            # Not `>=`: an image with a NaN score exits at once.
            exited |= ~((probability if score is None else score) < thresholds[i])
    capacity = target[0].shape[0] if target else 0
    kept_slots = jnp.where(exited, capacity, slots)
    target = tuple(
        x.at[kept_slots].set(y, mode="drop") for x, y in zip(target, state, strict=bool(target))
    )
    exits |= jnp.where(exited, 0, CONTINUES)
    bits = jax.lax.bitcast_convert_type(confidence, jnp.int32)
    return jnp.stack([labels, exits, bits]), target
