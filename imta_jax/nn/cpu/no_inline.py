"""Telling XLA's processor backend to compute an array once."""

import jax
from jax.experimental.xla_metadata import set_xla_metadata


@jax.custom_vjp
def materialized(x: jax.Array) -> jax.Array:
    """The same array, kept in memory rather than computed again by each of its readers.

    XLA fuses what it thinks is cheap into everything that reads it: of a dense network's map, which
    is all earlier ones beside each other, it adds up and normalises each of them again for every
    later layer. A call that is not inlined is not fused either. (On a processor
    `jax.lax.optimization_barrier` does not help: it is dropped before operations are fused.)
    Nothing is copied. Measured in docs/results/cpu.md, "One computation per map".

    Args:
      x: of any shape and type.

    Returns:
      x; its gradient is handed on as it is.
    """
    with set_xla_metadata(inlineable="false"):
        return _itself(x)


# The rule for gradients keeps JAX from leaving the call out: it returns what it was given.
materialized.defvjp(lambda x: (materialized(x), None), lambda _, gradient: (gradient,))


@jax.jit
def _itself(x: jax.Array) -> jax.Array:
    return x
