"""One-for-all distillation against a NumPy restatement of Eq. 7-8, and what the formula implies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.techniques import (
    LAST_EXIT_LOSSES,
    REDUCTIONS,
    cross_entropy,
    one_for_all_loss,
    teacher_divergence,
)

E, N, K = 4, 5, 7
CONVENTIONS = list(itertools.product(REDUCTIONS, (False, True), LAST_EXIT_LOSSES))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits [E, N, K], labels [N], teacher logits [N, K])."""
    generator = np.random.default_rng(0)
    logits, teacher = generator.normal(0, 3, (E, N, K)), generator.normal(0, 3, (N, K))
    return logits.astype(np.float32), generator.integers(0, K, N), teacher.astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def restated(
    logits: np.ndarray,
    labels: np.ndarray,
    teacher: np.ndarray,
    alpha: float,
    temperature: float,
    convention: tuple[str, bool, str],
) -> float:
    """Eq. 7 in float64, one exit and one image at a time."""
    reduction, squared, last_exit = convention
    taught, total = softmax(teacher / temperature), 0.0
    for i, student_logits in enumerate(logits):
        ce = np.mean(
            [-np.log(softmax(row)[y]) for row, y in zip(student_logits, labels, strict=True)]
        )
        student = softmax(student_logits / temperature)
        divergences = [np.sum(p * np.log(p / q)) for p, q in zip(taught, student, strict=True)]
        kl = np.mean(divergences) / (K if reduction == "elements" else 1)
        kl *= temperature**2 if squared else 1
        plain = last_exit == "cross_entropy" and i == len(logits) - 1
        total += ce if plain else alpha * ce + (1 - alpha) * kl
    return total


def keywords(convention: tuple[str, bool, str]) -> dict[str, object]:
    return dict(zip(("reduction", "temperature_squared", "last_exit"), convention, strict=True))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("alpha", "temperature"), [(0.9, 1.0), (0.1, 3.0), (0.0, 0.5)])
def test_loss_equals_the_formula_in_every_convention(data, convention, alpha, temperature):
    found = one_for_all_loss(
        *map(jnp.asarray, data), alpha=alpha, temperature=temperature, **keywords(convention)
    )
    assert found.shape == () and found.dtype == jnp.float32
    assert float(found) == pytest.approx(restated(*data, alpha, temperature, convention), rel=1e-5)


def test_defaults_are_what_the_paper_says(data):
    found = one_for_all_loss(*map(jnp.asarray, data), alpha=0.5, temperature=2.0)
    assert float(found) == pytest.approx(
        restated(*data, 0.5, 2.0, ("batch", False, "mixed")), rel=1e-5
    )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_no_gradient_reaches_the_teacher(data, convention):
    found = jax.grad(one_for_all_loss, argnums=2)(
        *map(jnp.asarray, data), alpha=0.1, temperature=3.0, **keywords(convention)
    )
    np.testing.assert_array_equal(found, 0)


def test_the_last_exit_teaching_itself_learns_from_labels_only(data):
    """Eq. 7 with the own last exit as teacher: the divergence there is zero, its gradient too."""
    logits, labels = jnp.asarray(data[0]), jnp.asarray(data[1])

    def loss(logits: jax.Array) -> jax.Array:
        return one_for_all_loss(logits, labels, logits[-1], alpha=0.3, temperature=2.0)

    plain = jax.grad(lambda logits: cross_entropy(logits, labels).sum())(logits)
    found = jax.grad(loss)(logits)
    np.testing.assert_allclose(found[-1], 0.3 * plain[-1], rtol=1e-5, atol=1e-7)
    assert np.abs(found[0] - 0.3 * plain[0]).max() > 1e-3


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_alpha_one_is_training_without_distillation(data, convention):
    logits, labels, teacher = map(jnp.asarray, data)
    found = one_for_all_loss(
        logits, labels, teacher, alpha=1.0, temperature=3.0, **keywords(convention)
    )
    assert float(found) == pytest.approx(float(cross_entropy(logits, labels).sum()), rel=1e-6)


def test_divergence_is_positive_and_vanishes_with_its_gradient_at_the_teacher(data):
    logits, _, teacher = map(jnp.asarray, data)
    assert (teacher_divergence(logits, teacher, temperature=2.0) > 0).all()
    equal = jnp.broadcast_to(teacher, (E, N, K))
    found, gradient = jax.value_and_grad(
        lambda logits: teacher_divergence(logits, teacher, temperature=2.0).sum()
    )(equal)
    assert float(found) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((E, N, K)), atol=1e-7)


def test_divergence_reductions_differ_by_the_number_of_classes(data):
    logits, _, teacher = map(jnp.asarray, data)
    batch, elements = (
        teacher_divergence(logits, teacher, temperature=1.5, reduction=name) for name in REDUCTIONS
    )
    np.testing.assert_allclose(batch, K * elements, rtol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_constant_added_to_logits_changes_nothing(data, convention):
    logits, labels, teacher = map(jnp.asarray, data)
    kwargs = {"alpha": 0.4, "temperature": 3.0, **keywords(convention)}
    found = one_for_all_loss(logits + 50, labels, teacher - 20, **kwargs)
    assert float(found) == pytest.approx(
        float(one_for_all_loss(logits, labels, teacher, **kwargs)), rel=1e-5
    )


def test_extreme_logits_stay_finite(data):
    _, labels, teacher = map(jnp.asarray, data)
    logits = jnp.asarray(data[0]) * 1e4

    def loss(logits: jax.Array) -> jax.Array:
        return one_for_all_loss(logits, labels, 1e4 * teacher, alpha=0.5, temperature=1.0)

    found, gradient = jax.value_and_grad(loss)(logits)
    assert np.isfinite(found) and np.isfinite(gradient).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_class_that_is_masked_everywhere_changes_nothing(data, reduction):
    """Logits of -inf have probability 0; the divergence and its gradient are those without it."""
    logits, labels, teacher = map(jnp.asarray, data)

    def divergence(logits, teacher):
        return teacher_divergence(logits, teacher, temperature=2.0, reduction="batch").sum()

    def mask(x):
        return jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), -jnp.inf)], axis=-1)

    expected, slope = jax.value_and_grad(divergence)(logits, teacher)
    found, masked_slope = jax.value_and_grad(divergence)(mask(logits), mask(teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(masked_slope[..., :-1], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(masked_slope[..., -1], 0)
    loss = one_for_all_loss(
        mask(logits), labels, mask(teacher), alpha=0.3, temperature=2.0, reduction=reduction
    )
    assert np.isfinite(loss)


def test_half_precision_logits_are_computed_in_float32(data):
    logits, labels, teacher = map(jnp.asarray, data)
    half = logits.astype(jnp.bfloat16)
    kwargs = {"alpha": 0.5, "temperature": 3.0}
    found = one_for_all_loss(half, labels, teacher, **kwargs)
    assert found.dtype == jnp.float32
    assert found == one_for_all_loss(half.astype(jnp.float32), labels, teacher, **kwargs)


def test_cross_entropy_of_uniform_logits_is_log_of_the_classes():
    found = cross_entropy(jnp.zeros((E, N, K)), jnp.arange(N))
    np.testing.assert_allclose(found, np.full(E, np.log(K)), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "bach"}, "unknown reduction 'bach'; valid, the closest first: batch, elem"),
        ({"last_exit": "mix"}, "unknown last_exit 'mix'; valid, the closest first: mixed, cross"),
        ({"temperature": 0}, "temperature must be above 0; found 0"),
        ({"temperature": -1.0}, "temperature must be above 0; found -1.0"),
        ({"temperature": float("nan")}, "temperature must be above 0; found nan"),
    ],
)
def test_bad_values_are_refused_by_name(data, change: dict, message: str):
    kwargs = {"alpha": 0.5, "temperature": 1.0} | change
    with pytest.raises(ValueError, match=message):
        one_for_all_loss(*map(jnp.asarray, data), **kwargs)


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
def test_shapes_that_do_not_fit_are_refused(shapes: tuple):
    logits, labels, teacher = shapes
    with pytest.raises(ValueError, match=r"expected logits \[E, N, K\], labels \[N\]"):
        one_for_all_loss(
            jnp.zeros(logits),
            jnp.zeros(labels, jnp.int32),
            jnp.zeros(teacher),
            alpha=0.5,
            temperature=1.0,
        )
