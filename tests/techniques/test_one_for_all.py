"""One-for-all distillation: Eq. 7-8 against a NumPy implementation, and properties of the loss."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from imta_jax.techniques import (
    LAST_EXIT_LOSSES,
    REDUCTIONS,
    cross_entropy,
    one_for_all_loss,
    teacher_divergence,
)

E, N, K = 4, 5, 7
CONVENTIONS = tuple(itertools.product(REDUCTIONS, (False, True), LAST_EXIT_LOSSES))
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (E, N, K)).astype(np.float32)
TEACHER = RNG.normal(0, 3, (N, K)).astype(np.float32)
LABELS = RNG.integers(0, K, N)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def reference_loss(alpha: float, temperature: float, convention: tuple[str, bool, str]) -> float:
    """Eq. 7 in float64, one exit and one image at a time."""
    reduction, squared, last_exit = convention
    teacher, total = softmax(TEACHER / temperature), 0.0
    for i, student_logits in enumerate(LOGITS):
        probabilities = softmax(student_logits)
        ce = np.mean([-np.log(p[y]) for p, y in zip(probabilities, LABELS, strict=True)])
        student = softmax(student_logits / temperature)
        divergences = [np.sum(p * np.log(p / q)) for p, q in zip(teacher, student, strict=True)]
        kl = np.mean(divergences) / (K if reduction == "elements" else 1)
        kl *= temperature**2 if squared else 1
        plain = last_exit == "cross_entropy" and i == len(LOGITS) - 1
        total += ce if plain else alpha * ce + (1 - alpha) * kl
    return total


def loss_with(alpha: float, temperature: float, convention: tuple[str, bool, str]):
    """The loss as a function of (logits, labels, teacher logits)."""
    reduction, squared, last_exit = convention
    return functools.partial(
        one_for_all_loss,
        alpha=alpha,
        temperature=temperature,
        reduction=reduction,
        temperature_squared=squared,
        last_exit=last_exit,
    )


class FormulaTest(chex.TestCase):
    """Compares the losses with the formulas, with and without `jax.jit`."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(
        convention=CONVENTIONS, weights=[(0.9, 1.0), (0.1, 3.0), (0.0, 0.5), (1.0, 3.0)]
    )
    def test_loss_equals_the_formula_in_every_convention(self, convention, weights):
        actual = self.variant(loss_with(*weights, convention))(LOGITS, LABELS, TEACHER)
        chex.assert_shape(actual, ())
        chex.assert_type(actual, jnp.float32)
        np.testing.assert_allclose(actual, reference_loss(*weights, convention), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_defaults_are_those_of_the_paper(self):
        loss = functools.partial(one_for_all_loss, alpha=0.5, temperature=2.0)
        actual = self.variant(loss)(LOGITS, LABELS, TEACHER)
        expected = reference_loss(0.5, 2.0, ("batch", False, "mixed"))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_extreme_logits_have_a_finite_loss_and_gradient(self):
        loss = functools.partial(one_for_all_loss, alpha=0.5, temperature=1.0)
        results = self.variant(jax.value_and_grad(loss))(1e4 * LOGITS, LABELS, 1e4 * TEACHER)
        chex.assert_tree_all_finite(results)

    @chex.variants(with_jit=True, without_jit=True)
    def test_cross_entropy_of_uniform_logits_is_log_of_the_classes(self):
        actual = self.variant(cross_entropy)(jnp.zeros((E, N, K)), jnp.arange(N))
        np.testing.assert_allclose(actual, np.full(E, np.log(K)), rtol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_no_gradient_reaches_the_teacher(convention):
    loss = loss_with(0.1, 3.0, convention)
    np.testing.assert_array_equal(jax.grad(loss, argnums=2)(LOGITS, LABELS, TEACHER), 0)


def test_the_last_exit_as_its_own_teacher_is_trained_by_labels_only():
    """In Eq. 7 the divergence of the last exit from itself is zero, and so is its gradient."""

    def loss(logits: jax.Array) -> jax.Array:
        return one_for_all_loss(logits, LABELS, logits[-1], alpha=0.3, temperature=2.0)

    plain = jax.grad(lambda logits: cross_entropy(logits, LABELS).sum())(LOGITS)
    actual = jax.grad(loss)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(actual[-1], 0.3 * plain[-1], rtol=1e-5, atol=1e-7)
    assert np.abs(actual[0] - 0.3 * plain[0]).max() > 1e-3


def test_divergence_is_positive_and_vanishes_with_its_gradient_at_the_teacher():
    assert (teacher_divergence(LOGITS, TEACHER, temperature=2.0) > 0).all()
    actual, gradient = jax.value_and_grad(
        lambda logits: teacher_divergence(logits, TEACHER, temperature=2.0).sum()
    )(jnp.broadcast_to(TEACHER, (E, N, K)))
    assert float(actual) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((E, N, K)), atol=1e-7)


def test_divergence_reductions_differ_by_the_number_of_classes():
    batch, elements = (
        teacher_divergence(LOGITS, TEACHER, temperature=1.5, reduction=name) for name in REDUCTIONS
    )
    np.testing.assert_allclose(batch, K * elements, rtol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_constant_added_to_the_logits_does_not_change_the_loss(convention):
    loss = loss_with(0.4, 3.0, convention)
    actual, expected = loss(LOGITS + 50, LABELS, TEACHER - 20), loss(LOGITS, LABELS, TEACHER)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_class_that_is_masked_in_all_logits_does_not_change_the_divergence(reduction):
    """Logits of -inf have probability 0, in the teacher and in the students."""

    def divergence(logits, teacher):
        return teacher_divergence(logits, teacher, temperature=2.0, reduction="batch").sum()

    def mask(x):
        return jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), -jnp.inf)], axis=-1)

    expected, gradient = jax.value_and_grad(divergence)(LOGITS, TEACHER)
    actual, masked_gradient = jax.value_and_grad(divergence)(mask(LOGITS), mask(TEACHER))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(masked_gradient[..., :-1], gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(masked_gradient[..., -1], 0)
    loss = one_for_all_loss(
        mask(LOGITS), LABELS, mask(TEACHER), alpha=0.3, temperature=2.0, reduction=reduction
    )
    chex.assert_tree_all_finite(loss)


def test_half_precision_logits_are_computed_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = loss_with(0.5, 3.0, ("batch", False, "mixed"))
    actual, expected = (loss(x, LABELS, TEACHER) for x in (half, half.astype(jnp.float32)))
    chex.assert_trees_all_equal(actual, expected, strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "bach"}, "reduction 'bach'.*: batch"),
        ({"last_exit": "mix"}, "last_exit 'mix'.*: mixed"),
        ({"alpha": 1.5}, r"alpha.*1\.5"),
        ({"temperature": 0}, r"temperature.*\b0$"),
        ({"temperature": -1.0}, r"temperature.*-1\.0"),
        ({"temperature": float("nan")}, "temperature.*nan"),
    ],
)
def test_invalid_values_raise(change: dict, message: str):
    kwargs = {"alpha": 0.5, "temperature": 1.0} | change
    with pytest.raises(ValueError, match=message):
        one_for_all_loss(LOGITS, LABELS, TEACHER, **kwargs)


@pytest.mark.parametrize(
    "shapes",
    [
        ((N, K), (N,), (N, K)),
        ((E, N, K), (N + 1,), (N, K)),
        ((E, N, K), (N, 1), (N, K)),
        ((E, N, K), (N,), (1, K)),
        ((E, N, K), (N,), (E, N, K)),
    ],
)
def test_inconsistent_shapes_raise(shapes: tuple):
    logits, labels, teacher = shapes
    message = rf"logits.*{re.escape(str(logits))}, .*{re.escape(str(teacher))}"
    with pytest.raises(ValueError, match=message):
        one_for_all_loss(
            jnp.zeros(logits),
            jnp.zeros(labels, jnp.int32),
            jnp.zeros(teacher),
            alpha=0.5,
            temperature=1.0,
        )
