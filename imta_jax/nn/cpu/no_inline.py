"""Keeps XLA on CPU from recomputing an array in every consumer."""

import jax
from jax.experimental.xla_metadata import set_xla_metadata


@jax.custom_vjp
def no_inline(x: jax.Array) -> jax.Array:
    """Returns x, computed once and stored in memory.

    XLA fuses cheap operations into every consumer. A dense network's feature map is a sum or
    concatenation of all earlier maps with many consumers, each of which would compute it again. A
    call that is not inlined is not fused. (`jax.lax.optimization_barrier` does not help on CPU: it
    is removed before fusion.) Nothing is copied. Measured in `docs/results/cpu.md`.

    Args:
      x: array of any shape and dtype; its gradient is passed through.
    """
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


# Without a gradient rule JAX removes the call, which returns its argument.
no_inline.defvjp(lambda x: (no_inline(x), None), lambda _, gradient: (gradient,))


@jax.jit
def _identity(x: jax.Array) -> jax.Array:
    return x
