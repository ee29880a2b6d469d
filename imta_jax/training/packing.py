"""Packing of small parameters, and their moments, into one vector.

A multi-exit network has hundreds of small parameters: of the 614 parameters of the 7-exit CIFAR
network, 84 have 95% of the elements. Checking, updating and copying the others one by one is a
third of a step's program, which increases the time to compile and to load it
(`docs/results/cpu.md`). In a step, a packed parameter is a slice of the vector. Checkpoints store
parameters unpacked, by name.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float32

# Most parameters are smaller; together they have 5% of all elements.
MAX_PACKED_SIZE = 4096


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which leaves of a pytree are packed.

    Attributes:
      structure: the pytree's structure.
      shapes: the shapes of its leaves, in order.
      packed: whether each leaf is packed.
    """

    structure: jax.tree_util.PyTreeDef  # pyright: ignore[reportInvalidTypeForm]
    shapes: tuple[tuple[int, ...], ...]
    packed: tuple[bool, ...]

    @classmethod
    def from_tree(cls, tree: Any, may_pack: Callable[[Any], bool]) -> "Packing":
        """Packs the float32 leaves of at most `MAX_PACKED_SIZE` elements that `may_pack` allows."""
        leaves, structure = jax.tree.flatten(tree)
        packed = [
            x.dtype == jnp.float32 and x.size <= MAX_PACKED_SIZE and may_pack(x) for x in leaves
        ]
        return cls(structure, tuple(x.shape for x in leaves), tuple(packed))

    def pack(self, tree: Any) -> "Packed":
        """Packs a pytree of this structure, of NumPy arrays or of traced arrays."""
        leaves = self.structure.flatten_up_to(tree)
        chex.assert_shape(leaves, list(self.shapes))
        small = [x for x, packed in zip(leaves, self.packed, strict=True) if packed]
        large = [x for x, packed in zip(leaves, self.packed, strict=True) if not packed]
        return Packed(_concatenate(small), tuple(large), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A pytree whose small leaves are concatenated to one vector.

    Attributes:
      vector: the packed leaves, flattened and concatenated.
      large: the other leaves, in order.
      packing: how they are unpacked.
    """

    vector: Float32[Array | np.ndarray, " P"]
    large: tuple[Any, ...]
    packing: Packing = dataclasses.field(metadata={"static": True})

    def unpack(self) -> Any:
        """The pytree: slices of a traced vector, or host copies."""
        vector, large, offset, leaves = _readable(self.vector), iter(self.large), 0, []
        for shape, packed in zip(self.packing.shapes, self.packing.packed, strict=True):
            if not packed:
                leaves.append(next(large))
                continue
            size = math.prod(shape)
            leaves.append(vector[offset : offset + size].reshape(shape))
            offset += size
        return self.packing.structure.unflatten(leaves)


def unpacked(tree: Any) -> Any:
    """A pytree in which every `Packed` is unpacked."""
    return jax.tree.map(lambda x: x.unpack() if _is_packed(x) else x, tree, is_leaf=_is_packed)


def packed_like(tree: Any, template: Any) -> Any:
    """The inverse of `unpacked`: packs a pytree as in `template`, with the same shardings."""

    def pack(packed: Any, part: Any) -> Any:
        if not _is_packed(packed):
            return part
        vectors = packed.packing.pack(part)
        return dataclasses.replace(
            vectors, vector=jax.device_put(vectors.vector, packed.vector.sharding)
        )

    return jax.tree.map(pack, template, tree, is_leaf=_is_packed)


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)


def _concatenate(leaves: Sequence[Any]) -> Float32[Array | np.ndarray, " P"]:
    traced = any(isinstance(x, Tracer) for x in leaves)
    xp = jnp if traced else np
    # Moments may have another dtype than the parameters.
    dtype = leaves[0].dtype if leaves else np.float32
    return xp.concatenate([np.zeros(0, dtype), *(x.reshape(-1) for x in leaves)])


def _readable(vector: Any) -> Any:
    # A copy, because a step may donate the vector.
    return vector if isinstance(vector, Tracer) else np.array(vector)
