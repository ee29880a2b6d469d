"""Batch normalization of maps that are appended to the channels of other maps (a dense layer).

The function is `batch_norm.batch_normalize` of each branch, and a concatenation. On TPUs the
backward pass sums over all channels of the gradient, of which those of the other maps are not used.
XLA fuses such sums into the convolution that computes the gradient. Sums over a part of its
channels are kernels of their own (`docs/results/accelerators.md`).
"""

import functools
import itertools
from typing import Any, NamedTuple

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

Branches = list[jax.Array]


class _Residuals(NamedTuple):
    """What the backward pass needs: residuals of each branch, and an empty array like the head."""

    branches: list[NormalizationResiduals]
    head: Float[Array, "0 C"]


@functools.partial(jax.jit, static_argnums=(4, 5))
def batch_normalize_appended(
    head: Float[Array, "N H W _"],
    branches: Branches,
    scales: Branches,
    biases: Branches,
    epsilon: float,
    relu: bool,
) -> tuple[Float[Array, "N H W _"], Branches, Branches]:
    """Normalizes each branch with its own mean and variance, and appends it to the head.

    Args:
      head: maps that are not normalized.
      branches: maps of the head's height and width.
      scales: factor per channel, of each branch.
      biases: offset per channel, of each branch.
      epsilon: added to the variance.
      relu: whether ReLU follows the normalization.

    Returns:
      (maps with the channels of head and branches, means, variances), see
      `batch_norm.batch_normalize`.
    """
    return _append(head, branches, scales, biases, epsilon, relu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _append(
    head: jax.Array,
    branches: Branches,
    scales: Branches,
    biases: Branches,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, Branches, Branches]:
    return _forward(head, branches, scales, biases, epsilon, relu)[0]


def _forward(
    head: jax.Array,
    branches: Branches,
    scales: Branches,
    biases: Branches,
    epsilon: float,
    relu: bool,
) -> tuple[tuple[jax.Array, Branches, Branches], _Residuals]:
    ys, means, variances, residuals = [], [], [], []
    for arguments in zip(branches, scales, biases, strict=True):
        (y, mean, variance), kept = forward_pass(*arguments, epsilon, relu, -1)
        ys.append(y)
        means.append(mean)
        variances.append(variance)
        residuals.append(kept)
    result = jnp.concatenate([head, *ys], axis=-1), means, variances
    return result, _Residuals(residuals, jnp.zeros((0, head.shape[-1]), head.dtype))


def _backward(
    epsilon: float, relu: bool, residuals: _Residuals, cotangents: tuple[Any, ...]
) -> tuple[jax.Array, Branches, Branches, Branches]:
    return jax.lax.platform_dependent(
        residuals,
        cotangents[0],
        tpu=functools.partial(_sum_all_channels, epsilon, relu),
        default=functools.partial(_sum_by_branch, epsilon, relu),
    )


def _sum_by_branch(
    epsilon: float, relu: bool, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, Branches, Branches, Branches]:
    """The gradients from sums over the channels of each branch."""
    head, *parts = _split(gradient, residuals)
    found = [
        backward_pass(epsilon, relu, -1, kept, (part,))
        for kept, part in zip(residuals.branches, parts, strict=True)
    ]
    return head, *_transposed(found)


def _sum_all_channels(
    epsilon: float, relu: bool, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, Branches, Branches, Branches]:
    """The gradients from sums over all channels, and the used channels of these."""

    def padded(maps: Branches) -> jax.Array:
        channels = residuals.head.shape[-1]
        return jnp.pad(jnp.concatenate(maps, axis=-1), ((0, 0),) * 3 + ((channels, 0),))

    def joined(index: int) -> Any:
        return [kept[index] for kept in residuals.branches]

    wide = at_least_float32(gradient)
    masked = jnp.where(padded(joined(1)) > 0, wide, 0) if relu else wide
    products = (masked * at_least_float32(padded(joined(0)))).sum((0, 1, 2))
    sums = zip(_split(masked.sum((0, 1, 2)), residuals), _split(products, residuals), strict=True)
    head, *parts = _split(gradient, residuals)
    found = []
    for kept, part, own_sums in zip(residuals.branches, parts, list(sums)[1:], strict=True):
        own = at_least_float32(part)
        own = own if kept[1] is None else jnp.where(kept[1] > 0, own, 0)
        found.append(backward_from_sums(epsilon, -1, kept, own, *own_sums))
    return head, *_transposed(found)


def _transposed(
    found: list[tuple[jax.Array, jax.Array, jax.Array]],
) -> tuple[Branches, Branches, Branches]:
    """Lists of the gradients of x, scale and bias instead of one tuple per branch."""
    xs, scales, biases = zip(*found, strict=True)
    return list(xs), list(scales), list(biases)


def _split(values: jax.Array, residuals: _Residuals) -> Branches:
    """The channels of the head and of each branch."""
    widths = [residuals.head.shape[-1], *(kept[0].shape[-1] for kept in residuals.branches)]
    return jnp.split(values, list(itertools.accumulate(widths))[:-1], axis=-1)


_append.defvjp(_forward, _backward)
