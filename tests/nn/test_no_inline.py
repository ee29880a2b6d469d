"""What is materialized is computed once, is not copied, and is itself in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.nn.cpu.no_inline import materialized


def itself(x: jax.Array) -> jax.Array:
    return x


@pytest.fixture(autouse=True)
def _fused_as_for_users():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def program(keep, differentiate: bool = False) -> str:
    """Two readers of a sum, compiled; fused, each would add it up anew."""

    def readers(x, y):
        both = keep(x + y)
        return jnp.concatenate([x, both]), jnp.concatenate([both, y, x])

    def loss(x, y):
        return sum(jnp.sum(a * a) for a in readers(x, y))

    x = jnp.ones((8, 16))
    function = jax.grad(loss) if differentiate else readers
    return jax.jit(function).lower(x, x).compile().as_text()


def test_readers_do_not_compute_it_again():
    again, once = (program(keep).count(" add(") for keep in (itself, materialized))
    assert (again, once) == (2, 1)


def test_nothing_is_copied():
    assert " copy(" not in program(materialized)


def test_it_stays_under_a_gradient():
    assert 'inlineable="false"' in program(materialized, differentiate=True)


def test_it_is_the_identity():
    x = jnp.linspace(0, 1, 6).reshape(2, 3)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(materialized(x))))(x)
    np.testing.assert_allclose(value, np.sum(np.sin(x)), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.cos(x), rtol=1e-5)
