"""JAX's typed PRNG keys as arrays of numbers, for files, host copies and exported programs.

Layers that draw random numbers, such as `nnx.Dropout`, keep a key among their variables. NumPy and
most file formats cannot hold it.
"""

from typing import Any

import jax
import jax.numpy as jnp


def is_key(x: Any) -> bool:
    """Whether x is an array of typed PRNG keys."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def as_numbers(x: Any) -> Any:
    """The bits of PRNG keys as uint32, Python scalars as JAX arrays, other arrays unchanged."""
    if is_key(x):
        return jax.random.key_data(x)
    return x if hasattr(x, "dtype") else jnp.asarray(x)


def from_numbers(numbers: Any, template: Any) -> Any:
    """The inverse of `as_numbers`: PRNG keys if `template` is an array of keys."""
    return (
        jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(template))
        if is_key(template)
        else numbers
    )
