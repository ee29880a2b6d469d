"""Gradient equilibrium (paper Sec. 3.1, Eq. 4-6): gradients bounded for any number of exits.

Exit i and all later exits read the output of stage i, so its gradient is a sum of k - i + 1 terms.
Gradient equilibrium leaves the forward pass unchanged. In the backward pass it multiplies the
gradient towards exit i by 1/(k-i+1) and the gradient towards later stages by (k-i)/(k-i+1). Along a
path these factors telescope: every loss reaches stage i with weight 1/(k-i+1) (Eq. 5).
"""

from typing import Any, TypeVar, get_args

import chex
import jax
import jax.numpy as jnp

from imta_jax import options
from imta_jax.errors import unknown_name

Tree = TypeVar("Tree")

EQUILIBRIUM_MODES = get_args(options.EquilibriumMode)


@jax.custom_vjp
def _rescale(x: Tree, scale: jax.Array) -> Tree:
    return x


def _rescale_forward(x: Tree, scale: jax.Array) -> tuple[Tree, jax.Array]:
    return x, scale


def _rescale_backward(scale: jax.Array, gradient: Tree) -> tuple[Tree, jax.Array]:
    def rescaled(leaf: Any) -> Any:
        if leaf.dtype == jax.dtypes.float0:  # gradients of integers
            return leaf
        return leaf * scale.astype(leaf.dtype)

    return jax.tree.map(rescaled, gradient), jnp.zeros_like(scale)


_rescale.defvjp(_rescale_forward, _rescale_backward)


def rescale_gradient(x: Tree, scale: float | jax.Array) -> Tree:
    """R(x; s) of Eq. 4: the identity, with a gradient multiplied by `scale`.

    Args:
      x: any pytree of arrays.
      scale: scalar. It receives no gradient.

    Returns:
      x, bit for bit.
    """
    scale = jnp.asarray(scale, jnp.float32)
    chex.assert_rank(scale, 0)
    return _rescale(x, scale)


def split_gradient(
    state: tuple[Any, ...], exit_index: int, num_exits: int, equilibrium: str
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Splits a stage's output into the exit's input and the next stage's input (Sec. 3.1).

    Args:
      state: output of the stage: feature maps, finest scale first.
      exit_index: index of the exit after the stage, from 0 (i - 1 in the paper).
      num_exits: number of exits k.
      equilibrium: one of `EQUILIBRIUM_MODES`. With "coarsest", as in the published code, finer maps
        keep their gradients, so Eq. 5 holds only along the coarsest scale.

    Returns:
      (input of the exit, input of the next stage). Both have the values of `state`.

    Raises:
      ValueError: an unknown `equilibrium`.
    """
    if equilibrium not in EQUILIBRIUM_MODES:
        raise unknown_name("equilibrium", equilibrium, EQUILIBRIUM_MODES)
    if equilibrium == "off":
        return state, state
    remaining = num_exits - exit_index  # k - i + 1 in the paper, where i counts from 1
    unscaled, scaled = (state[:-1], state[-1:]) if equilibrium == "coarsest" else ((), state)
    for_exit = unscaled + rescale_gradient(scaled, 1 / remaining)
    for_next_stage = unscaled + rescale_gradient(scaled, (remaining - 1) / remaining)
    return for_exit, for_next_stage
