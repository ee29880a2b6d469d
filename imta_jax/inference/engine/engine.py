"""The early-exit engine: compiled segments of a network, and the pools in which images wait.

A *segment* is one or more stages compiled together, for a few batch sizes. It gathers the images
that wait at its entrance, runs, decides who leaves, and scatters the others to their rows of the
next pool: one program, one word with the host. That gathering is what compacts a batch; nothing is
recompiled for it, and nothing copied that goes no further.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.inference.engine.staged import Rows, StagedNetwork, Weights
from imta_jax.runtime.parallel_compilation import compile_all

# No softmax exceeds 1 by more than rounding: above this threshold an exit answers nobody.
_REACHABLE = 1.0 + 1e-5
# Otherwise a bfloat16 sum that is not stored keeps float32 digits, and the same image gets other
# confidences when the network is cut elsewhere.
COMPILER_OPTIONS = {"xla_allow_excess_precision": False}
# Set in an answer's exit if the image was not confident there and goes on.
_STAYS = 1 << 16


class Segment(NamedTuple):
    """Stages `first` to `last`, both included, from 0; nobody leaves before its end."""

    first: int
    last: int


class ProgramKey(NamedTuple):
    """What a program is compiled for.

    Attributes:
      segment: the stages.
      heard: for each but the last, whether images can be confident there.
      size: images at a time.
      dtype: of the images, at the first segment.
    """

    segment: Segment
    heard: tuple[bool, ...]
    size: int
    dtype: np.dtype


class Answers(NamedTuple):
    """What a segment says of the images it was given, in their order.

    Attributes:
      labels: int32 [n], class predicted at `exit`.
      exit: int32 [n], the first exit in the segment that was confident, or its last one.
      confidence: float32 [n], highest softmax probability there.
      done: bool [n], whether it was confident: the image leaves.
    """

    labels: np.ndarray
    exit: np.ndarray
    confidence: np.ndarray
    done: np.ndarray


class Pools:
    """Where images wait between segments; an image has the same row in every pool.

    Args:
      network: see `StagedNetwork`.
      capacity: images at a time.
    """

    def __init__(self, network: StagedNetwork, capacity: int):
        self._shapes = pool_shapes(network, capacity)
        self._arrays: dict[int, Rows] = {}

    def take(self, stage: int) -> Rows:
        """The arrays [capacity, ...] that the stage reads; made when they are first asked for."""
        if stage not in self._arrays:
            shapes = self._shapes[stage]
            self._arrays[stage] = tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
        return self._arrays[stage]

    def remove(self, stage: int) -> Rows:
        """As `take`, to be given away and replaced by `put`; if that fails they are made anew."""
        self.take(stage)
        return self._arrays.pop(stage)

    def put(self, stage: int, arrays: Rows) -> None:
        """What the stage reads from now on."""
        self._arrays[stage] = arrays


class Programs:
    """A network's compiled segments, each (segment, batch size) once, whatever the thresholds.

    Args:
      network: see `StagedNetwork`.
      capacity: of the pools.

    Attributes:
      num_compiled: programs compiled so far.
    """

    def __init__(self, network: StagedNetwork, capacity: int):
        self.network, self.capacity = network, capacity
        self.num_compiled = 0
        self._compiling = threading.Lock()  # lanes may ask for the same program at a time
        self._pool_shapes = pool_shapes(network, capacity)
        self._compiled: dict[ProgramKey, jax.stages.Compiled] = {}

    def get(self, keys: Sequence[ProgramKey]) -> list[jax.stages.Compiled]:
        """The programs, those that are not there yet compiled several at a time."""
        if not all(key in self._compiled for key in keys):
            with self._compiling:
                missing = [key for key in dict.fromkeys(keys) if key not in self._compiled]
                compiled = compile_all([self._lowered(key) for key in missing])
                self._compiled.update(zip(missing, compiled, strict=True))
                self.num_compiled += len(missing)
        return [self._compiled[key] for key in keys]

    def _lowered(self, key: ProgramKey) -> jax.stages.Lowered:
        """A program, ready to be compiled."""
        first, following = key.segment.first, key.segment.last + 1
        images = (jax.ShapeDtypeStruct((key.size, *self.network.image_shape), key.dtype),)
        run = functools.partial(_run, self.network.stages, key.segment, key.heard)
        return jax.jit(run, donate_argnums=3, compiler_options=COMPILER_OPTIONS).lower(
            self.network.weights[first:following],
            jax.ShapeDtypeStruct((self.network.num_exits,), np.float32),
            self._pool_shapes.get(first, images),
            self._pool_shapes.get(following, ()),
            jax.ShapeDtypeStruct((key.size,), np.int32),
        )


class Engine:
    """Runs segments of a network on pools, with thresholds.

    Args:
      programs: see `Programs`.
      thresholds: float [E]; the last exit's is not looked at.

    Attributes:
      listening: bool [E], exits where an image can leave.
    """

    def __init__(self, programs: Programs, thresholds: np.ndarray):
        self.programs = programs
        self.network, self.capacity = programs.network, programs.capacity
        self.thresholds = np.asarray(thresholds, np.float32).copy()
        self.thresholds[-1] = -np.inf
        self.listening = self.thresholds <= _REACHABLE

    def new_pools(self) -> Pools:
        """Pools for the engine's programs."""
        return Pools(self.network, self.capacity)

    def prepare(self, wanted: Iterable[tuple[Segment, int]]) -> None:
        """Compiles (segment, batch size) programs for images of the network's type."""
        self.programs.get([self._key(*one, self.network.image_dtype) for one in wanted])

    def start(
        self,
        pools: Pools,
        segment: Segment,
        size: int,
        rows: np.ndarray,
        images: np.ndarray | None = None,
    ) -> jax.Array:
        """Starts a segment; `finish` waits for it.

        Args:
          pools: where the images wait, and where those that stay will.
          segment: what to run.
          size: batch size of the program.
          rows: int [n] of the images in the pools, n from 1 to size.
          images: [n, H, W, C] at the first segment, of the network's type or, where that is uint8,
            normalised floats.

        Returns:
          A value on the device, for `finish`.
        """
        dtype = self.network.image_dtype if images is None else images.dtype
        (program,) = self.programs.get([self._key(segment, size, dtype)])
        # Rows beyond the pool are read as its last one, and written nowhere.
        padded = np.full(size, self.capacity, np.int32)
        padded[: len(rows)] = rows
        source = pools.take(segment.first) if images is None else (_padded(images, size),)
        following = segment.last + 1
        target = pools.remove(following) if following < self.network.num_exits else ()
        weights = self.network.weights[segment.first : following]
        answers, target = program(weights, self.thresholds, source, target, padded)
        pools.put(following, target)
        return answers

    def finish(self, started: jax.Array, count: int) -> Answers:
        """The answers for the first `count` images of what was started."""
        labels, exits, confidence = np.asarray(started)[:, :count]
        return Answers(labels, exits & ~_STAYS, confidence.view(np.float32), exits < _STAYS)

    def _key(self, segment: Segment, size: int, dtype: np.dtype) -> ProgramKey:
        # The end of a segment is always heard: single stages serve all thresholds.
        heard = tuple(bool(h) for h in self.listening[segment.first : segment.last])
        return ProgramKey(segment, heard, size, np.dtype(dtype))


def pool_shapes(
    network: StagedNetwork, capacity: int
) -> dict[int, tuple[jax.ShapeDtypeStruct, ...]]:
    """Per stage but the first, the arrays [capacity, ...] in which its images wait."""
    return {
        stage: tuple(
            jax.ShapeDtypeStruct((capacity, *array.shape[1:]), array.dtype) for array in carried
        )
        for stage, carried in enumerate(network.carried(), start=1)
    }


def _run(
    stages: tuple[Callable[[Weights, Rows], tuple[Rows, jax.Array]], ...],
    segment: Segment,
    heard: tuple[bool, ...],
    weights: tuple[Weights, ...],
    thresholds: jax.Array,
    source: Rows,
    target: Rows,
    rows: jax.Array,
) -> tuple[jax.Array, Rows]:
    """A segment's program: (answers int32 [3, n], the next stage's pools)."""
    waiting = tuple(x.at[rows].get(mode="clip") for x in source) if segment.first else source
    done = jnp.zeros(rows.shape, bool)
    labels, exits, confidence = (
        jnp.zeros(rows.shape, t) for t in (jnp.int32, jnp.int32, jnp.float32)
    )
    for i, hears in enumerate((*heard, True), start=segment.first):
        waiting, logits = stages[i](weights[i - segment.first], waiting)
        # An exit that nobody can take is not computed, unless a later one reads it.
        if hears:
            probability = jax.nn.softmax(logits).max(axis=-1)
            labels = jnp.where(done, labels, logits.argmax(axis=-1).astype(jnp.int32))
            confidence = jnp.where(done, confidence, probability)
            exits = jnp.where(done, exits, i)
            # Not `>=`: what is not a number leaves at once, for no exit would make one of it.
            done |= ~(probability < thresholds[i])
    capacity = target[0].shape[0] if target else 0
    staying = jnp.where(done, capacity, rows)
    target = tuple(
        x.at[staying].set(y, mode="drop") for x, y in zip(target, waiting, strict=bool(target))
    )
    exits |= jnp.where(done, 0, _STAYS)
    bits = jax.lax.bitcast_convert_type(confidence, jnp.int32)
    return jnp.stack([labels, exits, bits]), target


def _padded(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, ...] with black ones added up to `size`."""
    if len(images) == size:
        return images
    return np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), images.dtype)])
