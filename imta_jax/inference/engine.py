"""The early-exit engine: compiled segments of a network, and the pools in which images wait.

A *segment* is one or more stages compiled together, for a few batch sizes. It gathers the images
that wait at its entrance, runs, decides who leaves, and scatters the others to their rows of the
next pool: one program, one word with the host. That gathering is what compacts a batch; nothing is
recompiled for it, and nothing copied that goes no further.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.inference.compilation import compile_all
from imta_jax.inference.staged import Rows, StagedNetwork, Weights

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

    def put(self, stage: int, arrays: Rows) -> None:
        """Replaces what the stage reads; the former arrays were donated."""
        self._arrays[stage] = arrays


class Engine:
    """Runs segments of a network on pools; compiles each (segment, batch size) once.

    Args:
      network: see `StagedNetwork`.
      thresholds: float [E]; the last exit's is not looked at.
      capacity: of the pools.

    Attributes:
      listening: bool [E], exits where an image can leave.
      num_compiled: programs compiled so far.
    """

    def __init__(self, network: StagedNetwork, thresholds: np.ndarray, capacity: int):
        self.network = network
        self.capacity = capacity
        self.thresholds = np.asarray(thresholds, np.float32).copy()
        self.thresholds[-1] = -np.inf
        self.listening = self.thresholds <= _REACHABLE
        self.num_compiled = 0
        self._compiling = threading.Lock()  # lanes may ask for the same program at a time
        self._pool_shapes = pool_shapes(network, capacity)
        self._programs: dict[tuple[Segment, int, np.dtype], jax.stages.Compiled] = {}

    def new_pools(self) -> Pools:
        """Pools for the engine's programs."""
        return Pools(self.network, self.capacity)

    def prepare(
        self, programs: Iterable[tuple[Segment, int]], dtype: np.dtype | None = None
    ) -> None:
        """Compiles (segment, batch size) programs that are not yet there, several at a time.

        Args:
          programs: what will be started.
          dtype: of the images; default, the network's.
        """
        dtype = np.dtype(dtype or self.network.image_dtype)
        keys = [(segment, size, dtype) for segment, size in dict.fromkeys(programs)]
        if all(key in self._programs for key in keys):
            return
        with self._compiling:
            missing = [key for key in keys if key not in self._programs]
            compiled = compile_all([self._lowered(*key) for key in missing])
            self._programs.update(zip(missing, compiled, strict=True))
            self.num_compiled += len(missing)

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
        self.prepare([(segment, size)], dtype)
        # Rows beyond the pool are read as its last one, and written nowhere.
        padded = np.full(size, self.capacity, np.int32)
        padded[: len(rows)] = rows
        source = pools.take(segment.first) if images is None else (_padded(images, size),)
        following = segment.last + 1
        target = pools.take(following) if following < self.network.num_exits else ()
        answers, target = self._programs[segment, size, dtype](
            self.network.weights[segment.first : following], self.thresholds, source, target, padded
        )
        pools.put(following, target)
        return answers

    def finish(self, started: jax.Array, count: int) -> Answers:
        """The answers for the first `count` images of what was started."""
        labels, exits, confidence = np.asarray(started)[:, :count]
        return Answers(labels, exits & ~_STAYS, confidence.view(np.float32), exits < _STAYS)

    def _lowered(self, segment: Segment, size: int, dtype: np.dtype) -> jax.stages.Lowered:
        """A segment at a batch size and a type of images, ready to be compiled."""
        following = segment.last + 1
        images = (jax.ShapeDtypeStruct((size, *self.network.image_shape), dtype),)
        run = functools.partial(_run, self.network.stages, segment, tuple(self.listening))
        return jax.jit(run, donate_argnums=3, compiler_options=COMPILER_OPTIONS).lower(
            self.network.weights[segment.first : following],
            jax.ShapeDtypeStruct(self.thresholds.shape, np.float32),
            self._pool_shapes.get(segment.first, images),
            self._pool_shapes.get(following, ()),
            jax.ShapeDtypeStruct((size,), np.int32),
        )


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
    listening: tuple[bool, ...],
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
    for i in range(segment.first, segment.last + 1):
        waiting, logits = stages[i](weights[i - segment.first], waiting)
        if listening[i] or i == segment.last:
            probability = jax.nn.softmax(logits).max(axis=-1)
            labels = jnp.where(done, labels, logits.argmax(axis=-1).astype(jnp.int32))
            confidence = jnp.where(done, confidence, probability)
            exits = jnp.where(done, exits, i)
            done |= probability >= thresholds[i]
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
