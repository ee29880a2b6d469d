"""Buffers that hold the state of images between two segments, one row per image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from imta_jax.inference.engine.staged import StagedNetwork

BufferArrays = tuple[Shaped[Array, "capacity ..."], ...]
StateShapes = tuple[jax.ShapeDtypeStruct, ...]


class Buffers:
    """Preallocated state arrays, one set per stage but the first.

    An image occupies the same slot in every buffer. Arrays are allocated at first use.

    Args:
      network: defines the state between stages.
      capacity: number of slots.
    """

    def __init__(self, network: StagedNetwork, capacity: int):
        self._network, self._capacity = network, capacity
        self._arrays: dict[int, BufferArrays] = {}

    def get(self, stage: int) -> BufferArrays:
        """Returns the arrays [capacity, ...] that the stage reads."""
        if stage not in self._arrays:
            shapes = buffer_shapes(self._network, self._capacity)[stage]
            self._arrays[stage] = tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
        return self._arrays[stage]

    def pop(self, stage: int) -> BufferArrays:
        """Removes and returns the arrays of a stage, so that a program can donate them.

        Call `set` with the program's output. If the program fails, the next `get` allocates new
        arrays.
        """
        self.get(stage)
        return self._arrays.pop(stage)

    def set(self, stage: int, arrays: BufferArrays) -> None:
        """Stores the arrays that the stage reads from now on."""
        self._arrays[stage] = arrays


def buffer_shapes(network: StagedNetwork, capacity: int) -> dict[int, StateShapes]:
    """Shapes [capacity, ...] of the buffers, by the stage (from 1) that reads them.

    Maps are [capacity, C, H, W] if the network has stages with the images last: moving an image
    between the two is then one transpose. Otherwise they are as in the state.
    """
    channels_first = network.images_last is not None

    def shape_of(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        inner = array.shape[1:]
        if channels_first and len(inner) == 3:
            inner = (inner[2], *inner[:2])
        return jax.ShapeDtypeStruct((capacity, *inner), array.dtype)

    return {
        stage: tuple(map(shape_of, state))
        for stage, state in enumerate(network.state_shapes(), start=1)
    }
