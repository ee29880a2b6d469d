"""Convolutions with batch normalization whose weights are prepared once, for inference.

`nn.fused` folds, joins and transposes the kernels in each call, because training changes them. Here
that is done at construction. For a single image it saves a third of the time
(`docs/results/cpu_inference.md`).
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.channels_first import Form, convolve_packed, form_of, pack_kernel
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.fused import boundaries_of
from imta_jax.nn.layers import ConvNorm


class PackedConvNorm(nnx.Module):
    """One convolution that computes several `ConvNorm` units of the same maps.

    Args:
      units: units with equal kernel size, stride and ReLU. Running statistics are used.
      layout: order of the axes of the maps.
      dtype: dtype of the kernel, the compute dtype of the maps. The bias is float32.
    """

    def __init__(self, units: Sequence[ConvNorm], layout: Layout, dtype: Any):
        first = units[0]
        folded = [_folded(unit) for unit in units]
        kernel, bias = (np.concatenate(parts, axis=-1) for parts in zip(*folded, strict=True))
        self.layout, self.relu = layout, first.relu
        self.stride = cast(int, first.conv.strides)
        self.boundaries = tuple(boundaries_of([unit.norm for unit in units]))
        self.form: Form = form_of(kernel, self.stride)
        if layout is Layout.CHWN:
            kernel = pack_kernel(kernel, self.form)
        self.kernel = nnx.Param(jax.device_put(np.ascontiguousarray(kernel.astype(dtype))))
        self.bias = nnx.Param(jax.device_put(bias))

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """The output of each unit for maps in the layout."""
        if self.layout is Layout.CHWN:
            y = convolve_packed(x, self.kernel[...], self.form, self.stride)
        else:
            y = convolve(x, self.kernel[...], self.stride)
        y = y + self.layout.per_channel(self.bias[...].astype(y.dtype))
        y = jax.nn.relu(y) if self.relu else y
        return jnp.split(y, self.boundaries, axis=self.layout.channel_axis)


def _folded(unit: ConvNorm) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a unit. In NumPy, because JAX would compile a program per shape."""
    norm = unit.norm
    factor = np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + norm.epsilon)
    offset = 0.0 if unit.conv.bias is None else np.asarray(unit.conv.bias[...])
    bias = np.asarray(norm.bias[...]) + (offset - np.asarray(norm.mean[...])) * factor
    kernel = np.asarray(unit.conv.kernel[...]) * factor
    return kernel.astype(np.float32), bias.astype(np.float32)
