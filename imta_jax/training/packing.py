"""Small parameters, and their moments, kept as one vector from step to step.

A multi-exit network has hundreds of parameters of a few numbers each: of 614 of the 7-exit CIFAR
network, 84 hold 95% of the numbers. Checking, updating and copying each of them apart is a third of
a step's program, which takes long to compile and to read back (`docs/results/cpu.md`). In a step
each is a slice of the vector, at no cost to whoever reads it; outside, `named_arrays` tells them
apart, so that checkpoints know nothing of it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Most arrays of a network have no more numbers, and together hold a twentieth of them.
MOST_NUMBERS = 4096


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which leaves of a tree are joined.

    Attributes:
      structure: of the tree.
      shapes: of all its leaves, in order.
      joined: which of them are joined.
    """

    structure: jax.tree_util.PyTreeDef  # pyright: ignore[reportInvalidTypeForm]
    shapes: tuple[tuple[int, ...], ...]
    joined: tuple[bool, ...]

    @classmethod
    def of(cls, tree: Any, may_join: Callable[[Any], bool]) -> "Packing":
        """Joins the float32 leaves of at most `MOST_NUMBERS` numbers that `may_join` agrees to."""
        leaves, structure = jax.tree.flatten(tree)
        joined = [x.dtype == jnp.float32 and x.size <= MOST_NUMBERS and may_join(x) for x in leaves]
        return cls(structure, tuple(x.shape for x in leaves), tuple(joined))

    def pack(self, tree: Any) -> "Packed":
        """Joins a tree of this structure: NumPy arrays to one, traced arrays in a program."""
        leaves = self.structure.flatten_up_to(tree)
        small = [x for x, joined in zip(leaves, self.joined, strict=True) if joined]
        large = [x for x, joined in zip(leaves, self.joined, strict=True) if not joined]
        return Packed(_join(small), tuple(large), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree whose small leaves are one vector; itself a pytree, of that vector and the others.

    Attributes:
      vector: [K], the small leaves one after the other.
      large: the others, in order.
      packing: tells them apart.
    """

    vector: jax.Array | np.ndarray
    large: tuple[Any, ...]
    packing: Packing = dataclasses.field(metadata={"static": True})

    def unpack(self) -> Any:
        """The tree: slices in a program, else copies on the host of what was joined."""
        vector, large, at, leaves = _readable(self.vector), iter(self.large), 0, []
        for shape, joined in zip(self.packing.shapes, self.packing.joined, strict=True):
            if not joined:
                leaves.append(next(large))
                continue
            size = math.prod(shape)
            leaves.append(vector[at : at + size].reshape(shape))
            at += size
        return self.packing.structure.unflatten(leaves)


def unpacked(tree: Any) -> Any:
    """A pytree with every `Packed` within it as the tree that it was."""
    return jax.tree.map(lambda x: x.unpack() if _is_packed(x) else x, tree, is_leaf=_is_packed)


def packed_like(tree: Any, like: Any) -> Any:
    """What `unpacked` made of a pytree like `like`, packed again, its vectors placed likewise."""

    def pack(packed: Any, part: Any) -> Any:
        if not _is_packed(packed):
            return part
        found = packed.packing.pack(part)
        return dataclasses.replace(
            found, vector=jax.device_put(found.vector, packed.vector.sharding)
        )

    return jax.tree.map(pack, like, tree, is_leaf=_is_packed)


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)


def _join(leaves: Sequence[Any]) -> Any:
    traced = any(isinstance(x, Tracer) for x in leaves)
    xp = jnp if traced else np
    return xp.concatenate([np.zeros(0, np.float32), *(x.reshape(-1) for x in leaves)])


def _readable(vector: Any) -> Any:
    # A copy: a step that donates the vector must not find it read by others.
    return vector if isinstance(vector, Tracer) else np.array(vector)
