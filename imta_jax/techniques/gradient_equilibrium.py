"""Gradient equilibrium (paper Sec. 3.1, Eq. 4-6): bounded gradients whatever the number of exits.

What stage i hands on is read by its own exit and by every later one, so its gradient is a sum of
k - i + 1 terms. The forward signal is left alone; the backward one is rescaled by 1/(k-i+1) towards
exit i and by (k-i)/(k-i+1) towards the later stages. Multiplied along a path, the factors
telescope: every loss reaches stage i with weight 1/(k-i+1) (Eq. 5).
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from imta_jax.errors import unknown_name

Tree = TypeVar("Tree")

# Which of the maps that a stage hands on are rescaled: none; the coarsest, as the reference code
# does; or all, which Eq. 5 needs to hold exactly.
EQUILIBRIUM_REACHES = ("off", "coarsest", "all")


@jax.custom_vjp
def _rescale(x: Tree, scale: jax.Array) -> Tree:
    return x


def _rescale_forward(x: Tree, scale: jax.Array) -> tuple[Tree, jax.Array]:
    return x, scale


def _rescale_backward(scale: jax.Array, gradient: Tree) -> tuple[Tree, jax.Array]:
    def rescaled(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jax.dtypes.float0:  # integers have no gradient to rescale
            return leaf
        return leaf * scale.astype(leaf.dtype)

    return jax.tree.map(rescaled, gradient), jnp.zeros_like(scale)


_rescale.defvjp(_rescale_forward, _rescale_backward)


def rescale_gradient(x: Tree, scale: float | jax.Array) -> Tree:
    """R(x; s) of Eq. 4: x itself on the way forward, `scale` times the gradient on the way back.

    Args:
      x: any pytree of arrays.
      scale: a number or a scalar array; it receives no gradient itself.

    Returns:
      x, bit for bit.
    """
    return _rescale(x, jnp.asarray(scale, jnp.float32))


def split_gradient(
    state: tuple[jax.Array, ...], exit_index: int, num_exits: int, reach: str
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Splits a stage's output into what its exit reads and what the next stage reads (Sec. 3.1).

    Args:
      state: the stage's feature maps [N, H, W, C], finest scale first.
      exit_index: the exit that follows the stage, counted from 0 (i - 1 in the paper).
      num_exits: k.
      reach: which maps are rescaled, one of `EQUILIBRIUM_REACHES`. "coarsest" is the reference
        code, whose finer maps keep plain gradients, so that Eq. 5 holds only along the coarsest.

    Returns:
      (for the exit, for the next stage), both equal to `state` in value.

    Raises:
      ValueError: an unknown `reach`.
    """
    if reach not in EQUILIBRIUM_REACHES:
        raise unknown_name("equilibrium", reach, EQUILIBRIUM_REACHES)
    if reach == "off":
        return state, state
    remaining = num_exits - exit_index  # k - i + 1 in the paper, where i counts from 1
    kept, scaled = (state[:-1], state[-1:]) if reach == "coarsest" else ((), state)
    for_exit = kept + rescale_gradient(scaled, 1 / remaining)
    onward = kept + rescale_gradient(scaled, (remaining - 1) / remaining)
    return for_exit, onward
