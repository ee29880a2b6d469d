"""Weights as 8-bit integers with one scale per output channel.

Symmetric, kernel = scale * integer, with integers from -127 to 127 (Krishnamoorthi, "Quantizing
deep convolutional networks for efficient inference", 2018, section 3.1.1). Only storage is
quantized: the network computes in float32 with the rounded kernels.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int8, Shaped

from imta_jax.models import MultiExitClassifier

_MOST = 127
# Rounding of float32 in the folded scales, in steps of 1/127 of the largest value. A kernel that
# was not quantized differs by up to 0.5.
_TOLERANCE = 2e-3


class Int8Array(NamedTuple):
    """An array of float32 as `integers * scale`.

    Attributes:
      integers: int8 values, in the shape of the array.
      scale: scales, an array of the same rank with size 1 on all axes but one.
    """

    integers: Int8[np.ndarray, "..."]
    scale: Float32[np.ndarray, "..."]

    def dequantized(self) -> Float32[np.ndarray, "..."]:
        """The array as float32."""
        return self.integers.astype(np.float32) * self.scale


def quantize_classifier(classifier: MultiExitClassifier) -> MultiExitClassifier:
    """Returns a classifier whose kernels are rounded to int8 per output channel.

    Args:
      classifier: left unchanged. Every parameter named `kernel` is rounded; its last axis is that
        of the output channels.
    """
    rounded = nnx.clone(classifier)
    state = nnx.state(rounded, nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        if path[-1] == "kernel" and variable[...].ndim >= 2:
            kernel = np.asarray(variable[...], np.float32)
            variable[...] = jnp.asarray(quantize(kernel, kernel.ndim - 1).dequantized())
    nnx.update(rounded, state)
    return rounded


def quantize(array: Float32[np.ndarray, "..."], axis: int) -> Int8Array:
    """Rounds an array to int8 with one scale per index of an axis."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _MOST, 1).astype(np.float32)
    return Int8Array(np.rint(array / scale).astype(np.int8), scale)


def exact_int8(array: Shaped[np.ndarray, "..."]) -> Int8Array | None:
    """A prepared kernel of a quantized classifier as int8; None for other arrays.

    Folding batch normalization scales each output channel, and preparing a kernel moves or splits
    the axis of the output channels. The values of a slice along some axis are then integers times
    one scale. That axis is found by trying each.
    """
    if array.dtype != np.float32 or array.ndim < 2:
        return None
    for axis in reversed(range(array.ndim)):
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if (scale := _scales(rows)) is not None:
            shape = [1] * array.ndim
            shape[axis] = -1
            scale = scale.reshape(shape)
            return Int8Array(np.rint(array / scale).astype(np.int8), scale)
    return None


def _scales(rows: Float32[np.ndarray, "n m"]) -> Float32[np.ndarray, " n"] | None:
    """Per row, a scale of which all values are multiples by -127 to 127.

    The integer of a row's largest value is unknown, because a row may hold a part of an output
    channel only. It is found by trying 127 to 1.

    Returns:
      The scales; None if a row has none.
    """
    largest = np.abs(rows).max(axis=1)
    scales = np.ones(len(rows), np.float32)
    pending = np.flatnonzero(largest > 0)
    for integer in range(_MOST, 0, -1):
        steps = rows[pending] / (largest[pending, None] / integer)
        exact = np.abs(steps - np.rint(steps)).max(axis=1) < _TOLERANCE * integer / _MOST
        scales[pending[exact]] = largest[pending[exact]] / integer
        pending = pending[~exact]
        if not len(pending):
            return scales
    return None
