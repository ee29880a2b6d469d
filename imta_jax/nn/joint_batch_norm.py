"""Batch normalization of the output of a convolution that computes several branches.

The function is that of `batch_norm.batch_normalize`, with an array per branch instead of one for
all channels. On TPUs the backward pass sums the gradient of each branch by itself. XLA fuses these
sums into the convolutions that compute the gradients. It does not fuse sums over the concatenated
gradients, which take as long as all convolutions of a layer (`docs/results/accelerators_log.md`).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imta_jax.nn.batch_norm import (
    NormalizationResiduals,
    at_least_float32,
    backward_from_sums,
    backward_pass,
    forward_pass,
)

_Gradients = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def batch_normalize_branches(
    x: Float[Array, "N H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
    relu: bool,
    boundaries: tuple[int, ...],
) -> tuple[list[jax.Array], Float[Array, " C"], Float[Array, " C"]]:
    """Normalizes x with its own mean and variance per channel, and splits the channels.

    Args:
      x: maps with the channels of all branches.
      scale: factor per channel.
      bias: offset per channel.
      epsilon: added to the variance.
      relu: whether ReLU follows.
      boundaries: channel indices at which a branch ends and the next begins.

    Returns:
      (maps of each branch, mean, variance), see `batch_norm.batch_normalize`.
    """
    return _normalize(x, scale, bias, epsilon, relu, boundaries)


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    relu: bool,
    boundaries: tuple[int, ...],
) -> tuple[tuple[list[jax.Array], jax.Array, jax.Array], NormalizationResiduals]:
    (y, mean, variance), residuals = forward_pass(x, scale, bias, epsilon, relu, -1)
    return (jnp.split(y, boundaries, axis=-1), mean, variance), residuals


def _backward(
    epsilon: float,
    relu: bool,
    boundaries: tuple[int, ...],
    residuals: NormalizationResiduals,
    cotangents: tuple[list[jax.Array], jax.Array, jax.Array],
) -> _Gradients:
    return jax.lax.platform_dependent(
        residuals,
        cotangents[0],
        tpu=functools.partial(_sum_by_branch, epsilon, relu, boundaries),
        default=functools.partial(_sum_jointly, epsilon, relu),
    )


def _sum_jointly(
    epsilon: float, relu: bool, residuals: NormalizationResiduals, gradients: list[jax.Array]
) -> _Gradients:
    """The gradients from sums over the concatenated gradients of the branches."""
    cotangents = (jnp.concatenate(gradients, axis=-1),)
    return backward_pass(epsilon, relu, -1, residuals, cotangents)


def _sum_by_branch(
    epsilon: float,
    relu: bool,
    boundaries: tuple[int, ...],
    residuals: NormalizationResiduals,
    gradients: list[jax.Array],
) -> _Gradients:
    """The gradients from sums over the gradient of each branch."""
    x, y = residuals[:2]
    xs, ys = (jnp.split(maps, boundaries, axis=-1) for maps in (x, x if y is None else y))
    masked, sums, products = [], [], []
    for gradient, x, y in zip(gradients, xs, ys, strict=True):
        wide = at_least_float32(gradient)
        wide = jnp.where(y > 0, wide, 0) if relu else wide
        masked.append(wide)
        sums.append(wide.sum((0, 1, 2)))
        products.append((wide * at_least_float32(x)).sum((0, 1, 2)))
    joined = (jnp.concatenate(values, axis=-1) for values in (masked, sums, products))
    return backward_from_sums(epsilon, -1, residuals, *joined)


_normalize = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(3, 4, 5))
_normalize.defvjp(_forward, _backward)
