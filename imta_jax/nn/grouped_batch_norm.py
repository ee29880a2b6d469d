"""Batch normalization of groups of consecutive images, each with statistics of its own.

The same formulas as in `nn.batch_norm`, with statistics [G, C] of G groups. Each image is summed
over its pixels first, so that maps keep their shape. A split batch axis gets another layout on
TPUs, which takes more memory (`docs/results/accelerators.md`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Groups(NamedTuple):
    """How images are grouped.

    Attributes:
      count: number of groups G.
      channels_first: whether maps are [C, ..., N] instead of [N, ..., C].
    """

    count: int
    channels_first: bool

    def sums(self, x: jax.Array) -> Float[Array, "G C"]:
        """Sums of maps over the pixels and images of each group."""
        pixels = x.sum(tuple(range(1, x.ndim - 1)))
        per_image = pixels.T if self.channels_first else pixels
        return per_image.reshape(self.count, -1, per_image.shape[-1]).sum(axis=1)

    def spread(self, values: Float[Array, "G C"], x: jax.Array) -> jax.Array:
        """The values of each image's group, in a shape that broadcasts over the maps x."""
        images = x.shape[-1 if self.channels_first else 0]
        shape = (self.count, images // self.count, values.shape[1])
        # `jnp.repeat` would gather across devices.
        per_image = jnp.broadcast_to(values[:, None], shape).reshape(images, -1)
        per_image = per_image.T if self.channels_first else per_image
        return per_image.reshape(per_image.shape[0], *(1,) * (x.ndim - 2), -1)


# Input, output if a ReLU follows, mean, variance and scale.
_Residuals = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_groups(
    x: jax.Array,
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
    relu: bool,
    groups: Groups,
) -> tuple[jax.Array, Float[Array, "G C"], Float[Array, "G C"]]:
    """Normalizes each group of images with its own mean and biased variance.

    Args:
      x: maps with the images on the first and the channels on the last axis, or the reverse.
      scale: factor per channel.
      bias: offset per channel.
      epsilon: added to the variance.
      relu: whether ReLU follows.
      groups: the groups.

    Returns:
      (y, mean, variance). No gradient flows through the last two.
    """
    return _forward(x, scale, bias, epsilon, relu, groups)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool, groups: Groups
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    wide, count = _at_least_float32(x), x.size // scale.size // groups.count
    mean = groups.sums(wide) / count
    variance = jnp.maximum(groups.sums(wide * wide) / count - mean * mean, 0)
    factor = scale[None] * jax.lax.rsqrt(variance + epsilon)
    y = wide * groups.spread(factor, x) + groups.spread(bias[None] - mean * factor, x)
    y = (jax.nn.relu(y) if relu else y).astype(x.dtype)
    return (y, mean, variance), (x, y if relu else None, mean, variance, scale)


def _backward(
    epsilon: float,
    relu: bool,
    groups: Groups,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, y, mean, variance, scale = residuals
    wide, gradient = _at_least_float32(x), _at_least_float32(cotangents[0])
    gradient = gradient if y is None else jnp.where(y > 0, gradient, 0)
    count = x.size // scale.size // groups.count
    inverse = jax.lax.rsqrt(variance + epsilon)
    bias_gradient = groups.sums(gradient)
    scale_gradient = inverse * (groups.sums(gradient * wide) - mean * bias_gradient)
    a = scale[None] * inverse
    b = -a * inverse * scale_gradient / count
    c = -a * bias_gradient / count - b * mean
    a, b, c = (groups.spread(values, x) for values in (a, b, c))
    x_gradient = (a * gradient + b * wide + c).astype(x.dtype)
    return x_gradient, scale_gradient.sum(axis=0), bias_gradient.sum(axis=0)


normalize_groups.defvjp(_forward, _backward)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
