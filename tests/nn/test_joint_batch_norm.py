"""Batch normalization of several branches: the form of TPUs equals the plain one."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.nn import joint_batch_norm
from imta_jax.nn.batch_norm import batch_normalize

EPSILON, BOUNDARIES = 1e-5, (2, 7)
normalize_branches = joint_batch_norm.batch_normalize_branches.__wrapped__  # Not cached by jit.


def drawn(shape: tuple[int, ...], seed: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 2, shape), dtype)


@pytest.fixture
def tpu_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses the form of TPUs on any device."""

    def chosen(*operands: Any, tpu: Any, **_: Any) -> Any:
        return tpu(*operands)

    monkeypatch.setattr(joint_batch_norm.jax.lax, "platform_dependent", chosen)


def result_and_gradient(normalize: Any, dtype: Any = jnp.float32) -> Any:
    """Results of the branches, statistics, and gradients of x, scale and bias."""
    weights = [drawn((6, 4, 5, width), 3 + i) for i, width in enumerate((2, 5, 3))]

    def loss(*arguments: jax.Array) -> tuple[jax.Array, Any]:
        ys, mean, variance = normalize(*arguments)
        return sum((y * w).sum() for y, w in zip(ys, weights, strict=True)), (ys, mean, variance)

    arguments = (drawn((6, 4, 5, 10), 0, dtype), drawn((10,), 1), drawn((10,), 2))
    (_, results), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), True))(*arguments)
    return results, gradients


def joint(relu: bool) -> Any:
    return lambda *arguments: normalize_branches(*arguments, EPSILON, relu, BOUNDARIES)


def plain(relu: bool) -> Any:
    def normalize(*arguments: jax.Array) -> Any:
        y, mean, variance = batch_normalize(*arguments, EPSILON, relu)
        return jnp.split(y, BOUNDARIES, axis=-1), mean, variance

    return normalize


@pytest.mark.parametrize("relu", [False, True])
def test_the_form_of_other_devices_is_bit_for_bit_the_plain_one(relu: bool) -> None:
    actual, expected = (result_and_gradient(form(relu)) for form in (joint, plain))
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("relu", [False, True])
def test_the_form_of_tpus_has_the_same_results_and_gradients(tpu_form: None, relu: bool) -> None:
    actual, expected = (result_and_gradient(form(relu)) for form in (joint, plain))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_form_of_tpus_keeps_the_dtypes_of_bfloat16_maps(tpu_form: None) -> None:
    actual, expected = (result_and_gradient(form(True), jnp.bfloat16) for form in (joint, plain))
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_close(actual[1][1:], expected[1][1:], rtol=2e-2, atol=0.5)


def test_sums_of_the_form_of_tpus_read_one_branch_each(tpu_form: None) -> None:
    """XLA does not fuse sums over concatenated gradients into convolutions."""
    arguments = drawn((6, 4, 5, 10), 0), drawn((10,), 1), drawn((10,), 2)
    _, vjp = jax.vjp(lambda *a: joint(True)(*a)[0], *arguments)
    jaxpr = jax.make_jaxpr(vjp)([drawn((6, 4, 5, width), 0) for width in (2, 5, 3)])
    sums = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "reduce_sum"]
    assert sorted(e.invars[0].aval.shape[-1] for e in sums) == [2, 2, 3, 3, 5, 5]
