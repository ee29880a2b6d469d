"""JAX's typed PRNG keys in files, host copies and exported programs.

Layers that draw random numbers, such as `nnx.Dropout`, keep a key among their variables. NumPy and
most file formats cannot hold it.
"""

import copyreg
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as extend_random

_GENERATORS = {
    generator.name: generator
    for generator in (
        extend_random.threefry_prng_impl,
        extend_random.rbg_prng_impl,
        extend_random.unsafe_rbg_prng_impl,
    )
}


def pickle_generators_by_name() -> None:
    """From now on, pickle stores JAX's random number generators by name instead of by value.

    JAX compares generators by identity to choose how it samples Beta and gamma distributions. An
    unpickled copy is equal, so that JAX's caches return it in place of the original. A step that is
    traced with the copy is another program, and its results differ in the last bit.
    """
    copyreg.pickle(type(extend_random.threefry_prng_impl), _reduced)


def _reduced(generator: Any) -> tuple[Any, tuple[Any, ...]]:
    if _GENERATORS.get(generator.name) == generator:
        return _generator, (generator.name,)
    return type(generator), tuple(generator)


def _generator(name: str) -> Any:
    return _GENERATORS[name]


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
