"""Convolution and batch normalization computed together, over the parameters of `nn.layers`.

Three optimizations that change the computation and not the function:
- Joint: several `ConvNorm`s that read the same map become one convolution with concatenated
  filters. The map is read once, and the product is wide enough for a CPU's vector units.
- Folded: a batch normalization with running statistics is multiplied into the convolution before
  it. That saves one pass over the map and, in bfloat16, one rounding. The fold is computed in each
  call, which takes a measurable share of the time for a single image only (see `nn.packed`).
- CHWN maps on one CPU; see `nn.cpu.layout`.
"""

import itertools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.nn.batch_norm import (
    BatchNorm,
    batch_normalize,
    normalize_with,
    unbiased_variance,
)
from imta_jax.nn.convolution import add_bias, convolve
from imta_jax.nn.cpu.channels_first import convolve_channels_first
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.joint_batch_norm import batch_normalize_branches
from imta_jax.nn.layers import ConvNorm


def fused_conv_norm(
    units: Sequence[ConvNorm],
    x: jax.Array,
    *,
    layout: Layout = Layout.NHWC,
    fold_batch_norm: bool = False,
) -> list[jax.Array]:
    """Applies several units to the same maps with one convolution.

    Args:
      units: units with equal kernel size, stride and ReLU. In training mode their running
        statistics are updated. Units in different modes are computed one by one.
      x: maps in `layout`.
      layout: order of the axes of x and of the outputs.
      fold_batch_norm: fold batch normalization into the convolution where running statistics are
        used and the convolution has no bias.

    Returns:
      The output of each unit.
    """
    if len({unit.norm.use_running_average for unit in units}) > 1:
        options = {"layout": layout, "fold_batch_norm": fold_batch_norm}
        return [fused_conv_norm([unit], x, **options)[0] for unit in units]
    first = units[0]
    stride = cast(int, first.conv.strides)
    kernels = [unit.conv.kernel[...] for unit in units]
    folds = fold_batch_norm and first.norm.use_running_average and first.conv.bias is None
    if not folds:
        y = _convolve(x, jnp.concatenate(kernels, axis=-1), stride, layout)
        if first.conv.bias is not None:
            biases = [unit.conv.bias for unit in units]
            bias = jnp.concatenate([bias[...] for bias in biases if bias is not None])
            y = add_bias(y, layout.per_channel(bias))
        norms = [unit.norm for unit in units]
        return normalize_jointly(norms, y, relu=first.relu, channel_axis=layout.channel_axis)
    folded = [fold(unit.norm, kernel) for unit, kernel in zip(units, kernels, strict=True)]
    kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*folded, strict=True))
    y = _convolve(x, kernel, stride, layout)
    y = y + layout.per_channel(bias.astype(y.dtype))
    y = jax.nn.relu(y) if first.relu else y
    return jnp.split(y, boundaries_of([unit.norm for unit in units]), axis=layout.channel_axis)


def fold(
    norm: BatchNorm, kernel: Float[Array, "k k I O"]
) -> tuple[Float[Array, "k k I O"], Float[Array, " O"]]:
    """Returns kernel and bias of the convolution that includes the batch normalization after it."""
    factor = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    return kernel * factor[None, None, None], norm.bias[...] - norm.mean[...] * factor


def normalize_jointly(
    norms: Sequence[BatchNorm], x: jax.Array, *, relu: bool = False, channel_axis: int = -1
) -> list[jax.Array]:
    """Applies several batch normalizations to their slices of the channels, in one pass.

    Args:
      norms: all in the same mode. In training mode their running statistics are updated.
      x: maps with the channels of all `norms`, concatenated.
      relu: whether ReLU follows.
      channel_axis: axis of the channels.

    Returns:
      The normalized slice of each.
    """

    def joined(name: str) -> jax.Array:
        return jnp.concatenate([getattr(norm, name)[...] for norm in norms])

    boundaries = boundaries_of(norms)
    affine = (joined("scale"), joined("bias"), norms[0].epsilon)
    if norms[0].use_running_average:
        y = normalize_with(x, (joined("mean"), joined("var")), *affine, channel_axis)
        return jnp.split(jax.nn.relu(y) if relu else y, boundaries, axis=channel_axis)
    groups, mesh = norms[0].statistics_groups, norms[0].mesh
    if groups == 1 and channel_axis == -1 and len(norms) > 1:
        ys, mean, variance = batch_normalize_branches(x, *affine, relu, tuple(boundaries))
    else:
        options = {"groups": groups, "mesh": mesh}
        y, mean, variance = batch_normalize(x, *affine, relu, channel_axis, **options)
        ys = jnp.split(y, boundaries, axis=channel_axis)
    variance = unbiased_variance(variance, x.size // x.shape[channel_axis] // groups)
    means, variances = jnp.split(mean, boundaries), jnp.split(variance, boundaries)
    for norm, own_mean, own_variance in zip(norms, means, variances, strict=True):
        norm.update_statistics(own_mean, own_variance)
    return ys


class FoldedConvNorm(ConvNorm):
    """A `ConvNorm` whose batch normalization is folded where it uses running statistics."""

    def __init__(self, unit: ConvNorm):
        self.conv, self.norm, self.relu = unit.conv, unit.norm, unit.relu

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Applies the unit, like `ConvNorm`."""
        return fused_conv_norm([self], x, fold_batch_norm=True)[0]


def fold_all(module: nnx.Module) -> nnx.Module:
    """Returns a module over the same variables in which every `ConvNorm` is folded."""
    copy = nnx.merge(*nnx.split(module))  # shares the variables
    for _, parent in list(nnx.iter_modules(copy)):
        if isinstance(parent, nnx.List):
            for index, child in enumerate(parent):
                if isinstance(child, ConvNorm):
                    parent[index] = FoldedConvNorm(child)
            continue
        for name, child in list(vars(parent).items()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, FoldedConvNorm(child))
    return copy


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, layout: Layout) -> jax.Array:
    if layout is Layout.CHWN:
        return convolve_channels_first(x, kernel, stride)
    return convolve(x, kernel, stride)


def boundaries_of(norms: Sequence[BatchNorm]) -> list[int]:
    """Channel indices between one unit's output and the next."""
    return list(itertools.accumulate(norm.num_features for norm in norms))[:-1]
