"""Temperature scaling: the minimum, the softmax and invalid input."""

import numpy as np
import pytest
from sample_logits import overconfident_split
from scipy.optimize import minimize_scalar

from imta_jax.evaluation.methods.temperature import (
    negative_log_likelihood,
    scaled_confidence,
    temperatures,
)
from imta_jax.evaluation.predictions import confidence, predicted


def test_temperatures_minimize_the_likelihood_on_a_fine_grid():
    logits, labels = overconfident_split(0)
    actual = temperatures(logits, labels)
    best = negative_log_likelihood(logits, labels, actual)
    for factor in np.exp(np.linspace(-3, 3, 121)):
        assert (best <= negative_log_likelihood(logits, labels, actual * factor) + 1e-6).all()
    nearby = negative_log_likelihood(logits, labels, actual * 1.02)
    assert (best < nearby).all()
    assert (actual > 1).all()  # The confidences of these logits are too high.


def test_temperatures_equal_those_of_scipy():
    logits, labels = overconfident_split(0)
    for z, actual in zip(logits, temperatures(logits, labels), strict=True):
        expected = minimize_scalar(
            lambda log_t, z=z: negative_log_likelihood(z[None], labels, [np.exp(log_t)])[0],
            bounds=np.log([0.01, 100]),
            method="bounded",
        )
        assert actual == pytest.approx(np.exp(expected.x), rel=1e-3)


def test_likelihood_and_confidence_are_those_of_the_softmax():
    logits, labels = overconfident_split(0, 50)
    temperature = np.array([0.5, 1.0, 2.0, 4.0])
    powers = np.exp(logits.astype(np.float64) / temperature[:, None, None])
    of_label = powers[:, np.arange(50), labels] / powers.sum(axis=-1)
    np.testing.assert_allclose(
        negative_log_likelihood(logits, labels, temperature),
        -np.log(of_label).mean(axis=1),
        rtol=1e-5,
    )
    expected = (powers / powers.sum(axis=-1, keepdims=True)).max(axis=-1)
    np.testing.assert_allclose(scaled_confidence(logits, temperature), expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled_confidence(logits, np.ones(4)), confidence(logits))


def test_scaling_the_logits_scales_the_temperature_and_keeps_predictions():
    logits, labels = overconfident_split(0)
    actual = temperatures(logits, labels)
    np.testing.assert_allclose(temperatures(logits * np.float32(3), labels), 3 * actual, rtol=1e-3)
    scaled = logits / actual.astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(predicted(scaled), predicted(logits))
    np.testing.assert_allclose(temperatures(scaled, labels), 1, rtol=1e-3)


def test_temperatures_without_a_minimum_stay_within_the_bounds():
    logits, labels = overconfident_split(0, 30)
    always_correct = np.eye(7, dtype=np.float32)[labels][None]
    assert 0.01 <= temperatures(always_correct, labels)[0] < 0.02
    assert 50 < temperatures(-always_correct, labels)[0] <= 100
    constant = temperatures(np.zeros_like(logits), labels)
    assert ((constant >= 0.01) & (constant <= 100)).all()


@pytest.mark.parametrize("temperature", [[1.0, 1.0], [0.0, 1, 1, 1], [np.nan, 1, 1, 1]])
def test_invalid_temperatures_raise(temperature):
    with pytest.raises(ValueError, match=r"temperature=.*4 exits"):
        scaled_confidence(overconfident_split(0, 5).logits, temperature)
