"""Boosted logits: the recursion, where gradients stop, and what it may be combined with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from ml_collections import ConfigDict

from imta_jax.config import HeadsConfig
from imta_jax.models.classifier import run_heads
from imta_jax.models.heads import make_heads, start_heads
from imta_jax.techniques import BoostedHeads
from imta_jax.training.combinations import check_combinations

WIDTHS, K = (4, 6, 3), 5
FEATURES = [jax.random.normal(jax.random.key(i), (8, width)) for i, width in enumerate(WIDTHS)]


def heads_of(kind: str = "boosted", seed: int = 0, **options):
    config = HeadsConfig(transfer=kind, options=ConfigDict(options), initialization="pytorch")
    sizes = {"feature_widths": WIDTHS, "num_classes": K}
    return make_heads(config, **sizes, rngs=nnx.Rngs(seed), field="heads")


def own_outputs(heads) -> np.ndarray:
    """o_i of every exit, in NumPy."""
    return np.stack(
        [
            np.asarray(x) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
            for layer, x in zip(heads.linears, FEATURES, strict=True)
        ]
    )


def test_logits_follow_the_recursion():
    heads = heads_of()
    o = own_outputs(heads)
    expected = [o[0], o[1] + 0.5 * o[0], o[2] + 0.5 * o[1] + 0.25 * o[0]]
    np.testing.assert_allclose(run_heads(heads, FEATURES), expected, rtol=1e-5, atol=1e-6)


def test_weight_one_is_the_identity_transfer_and_weight_zero_independent_exits():
    for weight, kind in ((1.0, "identity"), (0.0, "independent")):
        actual = run_heads(heads_of(weight=weight), FEATURES)
        np.testing.assert_allclose(
            actual, run_heads(heads_of(kind), FEATURES), rtol=1e-6, atol=1e-6
        )


def test_the_loss_of_an_exit_trains_its_own_layer_and_features_only():
    def loss(heads, features):
        return (run_heads(heads, features)[2] ** 2).sum()

    to_heads, to_features = nnx.grad(loss, argnums=(0, 1))(heads_of(), FEATURES)
    moved = [bool(jnp.any(to_heads.linears[i].kernel[...])) for i in range(3)]
    assert moved == [False, False, True]
    assert [bool(jnp.any(g)) for g in to_features] == [False, False, True]


def test_the_gradient_of_an_exits_layer_is_that_of_the_residual():
    """dL/do_i = softmax(z_i) - y, as in gradient boosting with cross-entropy."""
    labels = jnp.arange(8) % K

    def loss(bias):
        heads = heads_of()
        heads.linears[2].bias[...] = bias
        z = run_heads(heads, FEATURES)[2]
        return -jax.nn.log_softmax(z)[jnp.arange(8), labels].sum()

    z = run_heads(heads_of(), FEATURES)[2]
    expected = (jax.nn.softmax(z) - jax.nn.one_hot(labels, K)).sum(axis=0)
    bias = heads_of().linears[2].bias[...]
    np.testing.assert_allclose(jax.grad(loss)(bias), expected, rtol=1e-4, atol=1e-5)


def test_phase_two_heads_start_from_the_function_of_boosted_heads():
    earlier, heads = heads_of(seed=1), heads_of(seed=2)
    start_heads(heads, earlier)
    np.testing.assert_array_equal(run_heads(heads, FEATURES), run_heads(earlier, FEATURES))
    assert isinstance(heads, BoostedHeads)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weight": -1.0}, "weight .*at least 0; found -1.0"), ({"wieght": 1.0}, "'wieght'.*weight")],
)
def test_invalid_options_are_rejected(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        heads_of(**options)


def run_config(**changes):
    config = tiny_run.run_config("unused", phase_one__equilibrium="off", **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, heads="boosted"))


def test_the_mixed_regime_is_rejected_with_boosted_heads():
    with pytest.raises(ValueError, match=r"last_exit_epochs.*model.heads=\"boosted\".*found 1"):
        check_combinations(run_config(phase_one__last_exit_epochs=1))


def test_phase_two_continues_with_boosted_heads_or_starts_fresh():
    with pytest.raises(ValueError, match=r"phase_two.transfer .*model.heads .*found 'linear'"):
        check_combinations(run_config())
    check_combinations(run_config(phase_two__transfer="boosted"))
    check_combinations(run_config(phase_two__start="fresh"))
    check_combinations(run_config(phase_two__total_epochs=0))
