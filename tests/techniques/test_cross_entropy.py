"""Cross-entropy with label smoothing and mixed labels, against the formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.techniques import cross_entropy, one_for_all_loss, teacher_divergence

E, N, K = 3, 5, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (E, N, K)).astype(np.float32)
LABELS = RNG.integers(0, K, N)
ONE_HOT = np.eye(K, dtype=np.float32)[LABELS]
MIXED = (0.3 * ONE_HOT + 0.7 * np.roll(ONE_HOT, 1, axis=0)).astype(np.float32)
LOG_P = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("labels, targets", [(LABELS, ONE_HOT), (ONE_HOT, ONE_HOT), (MIXED, MIXED)])
def test_the_targets_are_smoothed_labels(labels, targets, epsilon):
    smooth = (1 - epsilon) * targets + epsilon / K
    expected = -(smooth * LOG_P).sum(axis=-1).mean(axis=-1)
    actual = cross_entropy(LOGITS, labels, label_smoothing=epsilon)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("last_exit", ["mixed", "cross_entropy"])
def test_distillation_smooths_the_cross_entropy_only(last_exit):
    teacher = LOGITS[-1] + 1
    entropy = np.array(cross_entropy(LOGITS, MIXED, label_smoothing=0.2))
    divergence = np.asarray(teacher_divergence(LOGITS, teacher, temperature=2.0))
    per_exit = 0.4 * entropy + 0.6 * divergence
    if last_exit == "cross_entropy":
        per_exit[-1] = entropy[-1]
    conventions = {"alpha": 0.4, "temperature": 2.0, "last_exit": last_exit}
    actual = one_for_all_loss(LOGITS, MIXED, teacher, **conventions, label_smoothing=0.2)
    np.testing.assert_allclose(actual, per_exit.sum(), rtol=1e-5)


def test_a_masked_class_without_probability_adds_nothing():
    logits = jnp.array([[0.0, -jnp.inf, 1.0]])
    labels = jnp.array([[0.5, 0.0, 0.5]])
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels))(logits)
    np.testing.assert_allclose(value, np.log(1 + np.e) - 0.5, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("epsilon", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_rejected(epsilon):
    with pytest.raises(ValueError, match=rf"label_smoothing.*{epsilon}"):
        cross_entropy(LOGITS, LABELS, label_smoothing=epsilon)
