"""`no_inline` is the identity. Its result is computed once and not copied."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.nn.cpu.no_inline import no_inline


def identity(x: jax.Array) -> jax.Array:
    return x


@pytest.fixture(autouse=True)
def _optimizations_enabled():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def compiled_text(wrapper, differentiate: bool = False) -> str:
    """Compiled text of a sum with two consumers. With fusion, each consumer recomputes the sum."""

    def consumers(x, y):
        total = wrapper(x + y)
        return jnp.concatenate([x, total]), jnp.concatenate([total, y, x])

    def loss(x, y):
        return sum(jnp.sum(a * a) for a in consumers(x, y))

    x = jnp.ones((8, 16))
    function = jax.grad(loss) if differentiate else consumers
    return jax.jit(function).lower(x, x).compile().as_text()


def test_consumers_do_not_recompute_the_array():
    fused, once = (compiled_text(wrapper).count(" add(") for wrapper in (identity, no_inline))
    assert (fused, once) == (2, 1)


def test_nothing_is_copied():
    assert " copy(" not in compiled_text(no_inline)


def test_the_call_is_kept_under_a_gradient():
    assert 'inlineable="false"' in compiled_text(no_inline, differentiate=True)


@chex.variants(with_jit=True, without_jit=True)
class NoInlineTest(chex.TestCase):
    def test_value_and_gradient_are_those_of_the_identity(self):
        x = jnp.linspace(0, 1, 6).reshape(2, 3)
        function = self.variant(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(no_inline(x)))))
        value, gradient = function(x)
        np.testing.assert_allclose(value, np.sum(np.sin(x)), rtol=1e-5)
        np.testing.assert_allclose(gradient, np.cos(x), rtol=1e-5)
