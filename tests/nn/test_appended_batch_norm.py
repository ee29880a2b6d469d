"""Batch normalization of appended maps: the form of TPUs equals the plain one."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.nn import appended_batch_norm
from imta_jax.nn.batch_norm import batch_normalize

EPSILON, WIDTHS = 1e-5, (2, 5)
append = appended_batch_norm.batch_normalize_appended.__wrapped__  # Not cached by jit.


def drawn(shape: tuple[int, ...], seed: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 2, shape), dtype)


@pytest.fixture
def tpu_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses the form of TPUs on any device."""

    def chosen(*operands: Any, tpu: Any, **_: Any) -> Any:
        return tpu(*operands)

    monkeypatch.setattr(appended_batch_norm.jax.lax, "platform_dependent", chosen)


def plain(head: Any, branches: Any, scales: Any, biases: Any, epsilon: float, relu: bool) -> Any:
    """Normalizes one branch after the other."""
    found = [
        batch_normalize(*arguments, epsilon, relu)
        for arguments in zip(branches, scales, biases, strict=True)
    ]
    ys, means, variances = (list(values) for values in zip(*found, strict=True))
    return jnp.concatenate([head, *ys], axis=-1), means, variances


def arguments(dtype: Any = jnp.float32) -> tuple[Any, ...]:
    branches = [drawn((6, 4, 5, width), width, dtype) for width in WIDTHS]
    scales, biases = ([drawn((width,), seed + width) for width in WIDTHS] for seed in (10, 20))
    return drawn((6, 4, 5, 3), 0, dtype), branches, scales, biases


def result_and_gradient(normalize: Any, relu: bool, dtype: Any = jnp.float32) -> Any:
    """Results, and gradients of head, branches, scales and biases."""
    weights = drawn((6, 4, 5, 3 + sum(WIDTHS)), 1)

    def loss(*arguments: Any) -> tuple[jax.Array, Any]:
        results = normalize(*arguments, EPSILON, relu)
        return (results[0] * weights).sum(), results

    differentiated = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
    (_, results), gradients = differentiated(*arguments(dtype))
    return results, gradients


@pytest.mark.parametrize("relu", [False, True])
def test_the_form_of_other_devices_is_bit_for_bit_the_plain_one(relu: bool) -> None:
    found, expected = (result_and_gradient(form, relu) for form in (append, plain))
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("relu", [False, True])
def test_the_form_of_tpus_has_the_same_results_and_gradients(tpu_form: None, relu: bool) -> None:
    found, expected = (result_and_gradient(form, relu) for form in (append, plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_form_of_tpus_keeps_the_dtypes_of_bfloat16_maps(tpu_form: None) -> None:
    found, expected = (result_and_gradient(form, True, jnp.bfloat16) for form in (append, plain))
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(found[1][2:], expected[1][2:], rtol=2e-2, atol=0.5)


def test_sums_of_the_form_of_tpus_read_all_channels_of_the_gradient(tpu_form: None) -> None:
    """XLA does not fuse sums over some channels into the convolution that computes them."""
    _, vjp = jax.vjp(lambda *a: append(*a, EPSILON, True)[0], *arguments())
    jaxpr = jax.make_jaxpr(vjp)(drawn((6, 4, 5, 10), 1))
    sums = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "reduce_sum"]
    assert [e.invars[0].aval.shape[-1] for e in sums] == [10, 10]
