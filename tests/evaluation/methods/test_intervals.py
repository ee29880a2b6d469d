"""Confidence intervals: coverage, agreement with SciPy, invalid input."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from imta_jax.evaluation.methods.intervals import bootstrap_interval, wilson_interval


def test_wilson_interval_covers_at_its_level():
    correct = np.random.default_rng(0).random((400, 300)) < 0.9
    low, high = wilson_interval(correct.mean(axis=1), 300).T
    assert 0.92 <= np.mean((low <= 0.9) & (high >= 0.9)) <= 0.98


def test_bootstrap_interval_covers_at_its_level():
    generator = np.random.default_rng(0)
    differences = generator.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(400, 300))
    ends = [
        bootstrap_interval(d[None], resamples=300, seed=i)[0] for i, d in enumerate(differences)
    ]
    low, high = np.array(ends).T
    assert 0.91 <= np.mean((low <= 0.1) & (high >= 0.1)) <= 0.98


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_interval_equals_scipy(level):
    for count in (0, 1, 17, 39, 40):
        expected = binomtest(count, 40).proportion_ci(level, method="wilson")
        np.testing.assert_allclose(wilson_interval(count / 40, 40, level), expected, atol=1e-15)


def test_bootstrap_interval_equals_scipy_with_the_same_draws():
    values = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    expected = bootstrap(
        (values,),
        np.mean,
        n_resamples=500,
        axis=-1,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    actual = bootstrap_interval(values, level=0.9, resamples=500, seed=7)
    np.testing.assert_allclose(actual, np.stack(expected, axis=-1), atol=1e-6)


def test_bootstrap_interval_of_a_constant_is_the_constant():
    np.testing.assert_array_equal(bootstrap_interval(np.ones((1, 9))), [[1, 1]])


def test_wilson_interval_stays_within_0_and_1():
    ends = wilson_interval(np.array([0.0, 1.0]), 10)
    assert ends[0, 0] == 0 < ends[0, 1]
    assert ends[1, 0] < 1 == ends[1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(0.5, 0), "number=0"),
        (lambda: wilson_interval(1.5, 10), r"fraction=1\.5"),
        (lambda: wilson_interval(0.5, 10, level=95), "level=95"),
        (lambda: bootstrap_interval(np.ones(3)), r"values.*\(3,\)"),
        (lambda: bootstrap_interval(np.ones((1, 3)), resamples=1), "resamples=1"),
        (lambda: bootstrap_interval(np.ones((1, 3)), level=0), "level=0"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
