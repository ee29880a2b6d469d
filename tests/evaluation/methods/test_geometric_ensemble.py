"""The geometric ensemble: its formula, its fit, and the cost it adds."""

import numpy as np
import pytest
from sample_logits import overconfident_split, split
from scipy.special import log_softmax, softmax

from imta_jax.evaluation.methods.geometric_ensemble import (
    GeometricEnsemble,
    fit_geometric_ensemble,
    negative_log_posterior,
)


def logits_of(*probabilities: tuple[float, ...]) -> np.ndarray:
    """Logits [E, 1, K] of one image with these probabilities at each exit."""
    return np.log(np.array(probabilities, np.float32))[:, None]


def nats(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -log_softmax(logits, axis=-1)[:, np.arange(len(labels)), labels].mean(axis=-1)


def test_equal_weights_give_the_normalized_geometric_mean():
    """sqrt(.8 * .5) to sqrt(.2 * .5) is 2 to 1."""
    weights = np.array([[1.0, 0.0], [0.5, 0.5]])
    ensemble = GeometricEnsemble(weights, np.zeros((2, 2)))
    actual = softmax(ensemble.logits(logits_of((0.8, 0.2), (0.5, 0.5))), axis=-1)[:, 0]
    np.testing.assert_allclose(actual, [[0.8, 0.2], [2 / 3, 1 / 3]], rtol=1e-6)


def test_biases_multiply_probabilities():
    ensemble = GeometricEnsemble(np.eye(1), np.log([[1.0, 3.0]]))
    actual = softmax(ensemble.logits(logits_of((0.6, 0.4))), axis=-1)[0, 0]
    np.testing.assert_allclose(actual, [1 / 3, 2 / 3], rtol=1e-6)


def test_the_gradient_is_that_of_the_value():
    logits, labels = split(0, num_images=40, num_exits=3)
    log_p = log_softmax(logits, axis=-1)
    generator = np.random.default_rng(1)
    at = np.concatenate([generator.random(3), 0.03 * generator.normal(size=7)])
    _, gradient = negative_log_posterior(at, log_p, labels)
    for i in range(len(at)):
        step = np.zeros(len(at))
        step[i] = 1e-2
        above, below = (negative_log_posterior(at + s, log_p, labels)[0] for s in (step, -step))
        assert gradient[i] == pytest.approx((above - below) / 2e-2, abs=2e-4)


def test_the_value_is_the_mean_over_images_of_loss_and_prior():
    logits, labels = split(0, num_images=5, num_exits=1)
    biases = np.array([0.5, 0, 0, 0, 0, 0, 0])
    actual, _ = negative_log_posterior(
        np.concatenate([[2.0], biases]), log_softmax(logits, axis=-1), labels
    )
    expected = nats(2 * log_softmax(logits, axis=-1) + biases, labels)[0] + (0.5 / 0.1) ** 2 / 2 / 5
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_fit_is_better_than_every_exit_on_its_images():
    logits, labels = overconfident_split(0)
    ensemble = fit_geometric_ensemble(logits, labels)
    actual, alone = nats(ensemble.logits(logits), labels), nats(logits, labels)
    for m in range(len(logits)):
        assert actual[m] < alone[: m + 1].min()
    assert (ensemble.weights >= 0).all()
    np.testing.assert_array_equal(np.triu(ensemble.weights, 1), 0)


def test_an_overconfident_exit_gets_the_weight_of_its_temperature():
    """Labels drawn from softmax(z), and logits 2 z: the best weight is 1/2."""
    generator = np.random.default_rng(2)
    z = generator.normal(size=(20_000, 4))
    p = softmax(z, axis=-1)
    labels = (p.cumsum(axis=-1) < generator.random((20_000, 1))).sum(axis=-1)
    ensemble = fit_geometric_ensemble(2 * z[None].astype(np.float32), labels)
    assert ensemble.weights[0, 0] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(ensemble.biases, 0, atol=0.05)


def test_an_exit_of_noise_gets_no_weight():
    logits, labels = split(3, num_images=2000, num_exits=2)
    logits[1] = np.random.default_rng(4).normal(size=logits[1].shape)
    weights = fit_geometric_ensemble(logits, labels).weights
    assert weights[1, 1] < 0.1 * weights[1, 0]


def test_biases_of_classes_without_an_image_are_finite():
    logits, labels = split(5, num_images=50)
    ensemble = fit_geometric_ensemble(logits, np.minimum(labels, 3))
    assert np.abs(ensemble.biases).max() < 10


def test_multiply_adds_include_the_ensembles_of_all_exits_so_far():
    ensemble = GeometricEnsemble(np.zeros((3, 3)), np.zeros((3, 10)))
    np.testing.assert_array_equal(ensemble.multiply_adds(), [10, 30, 60])
