"""Compaction: programs that gather the images that continue, between two segments.

A stage runs on batches of a few sizes. Its output is a state of the same size, in which some images
have exited. `gather_state` selects the others for the next stage, in the layout of the next batch
size. `merge_state` adds images of another output.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Shaped

State = tuple[Shaped[Array, "..."], ...]
# Axes of the 4-D arrays.
IMAGES_FIRST, IMAGES_LAST = "NHWC", "CHWN"


def gather_state(state: State, indices: Int32[Array, " m"], source: str, target: str) -> State:
    """Selects images of a state.

    Args:
      state: arrays of n images.
      indices: indices of the images; those beyond n select the last one, as padding.
      source: axes of the 4-D arrays. All other arrays have the images first.
      target: axes of the 4-D arrays that are returned.
    """

    def gather(x: jax.Array) -> jax.Array:
        if x.ndim != 4 or source.startswith("N"):
            x = x.at[indices].get(mode="clip")
        else:
            # As a matrix: a gather of the last of four axes takes four times as long on a CPU.
            pixels = x.reshape(-1, x.shape[-1]).at[:, indices].get(mode="clip")
            x = pixels.reshape(*x.shape[:-1], len(indices))
        return _transpose(x, source, target)

    return tuple(map(gather, state))


def merge_state(
    state: State,
    other: State,
    indices: Int32[Array, " m"],
    begin: Int32[Array, ""],
    source: str,
    target: str,
) -> State:
    """Replaces the images of a state from position `begin` on by images of another state.

    Args:
      state: arrays of m images.
      other: arrays of n images.
      indices: indices of the images in `other`, per position of the result.
      begin: position of the first image that is replaced.
      source: axes of the 4-D arrays of `other`.
      target: axes of the 4-D arrays of `state`.
    """

    def merge(x: jax.Array, y: jax.Array) -> jax.Array:
        axis = target.index("N") if x.ndim == 4 else 0
        position = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        return jnp.where(position < begin, x, y)

    return tuple(map(merge, state, gather_state(other, indices, source, target)))


def _transpose(x: jax.Array, source: str, target: str) -> jax.Array:
    if x.ndim != 4 or source == target:
        return x
    return x.transpose([source.index(axis) for axis in target])


def flattened(state: State) -> State:
    """A state whose maps [N, H, W, C] are [N, H*W*C]."""
    return tuple(x.reshape(len(x), -1) if x.ndim == 4 else x for x in state)


def shapes_of(shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Plain shapes of a state, without sharding or weak types."""
    return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes)
