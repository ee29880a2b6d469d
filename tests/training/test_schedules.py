"""Schedules: values against Optax's formulas, factories of other packages, and warm-up."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imta_jax
from imta_jax.config import PhaseOneConfig
from imta_jax.runtime.registry import SCHEDULES
from imta_jax.training.schedules import (
    check_schedule,
    epochs_schedule,
    phase_schedule,
    step_schedule,
)

STEPS = 40


def settings(**changes):
    return PhaseOneConfig(total_epochs=10, batch_size=1, learning_rate=0.2, **changes)


def values(schedule, count=STEPS):
    return np.array([float(schedule(jnp.int32(step))) for step in range(count)])


CASES = [
    ({}, lambda rate, n: step_schedule(rate, (0.5, 0.75), 0.1, n)),
    ({"schedule": "cosine"}, lambda rate, n: optax.cosine_decay_schedule(rate, n)),
    (
        {"schedule": "cosine", "schedule_options": {"alpha": 0.1, "exponent": 2.0}},
        lambda rate, n: optax.cosine_decay_schedule(rate, n, 0.1, 2.0),
    ),
    (
        {"schedule": "linear", "schedule_options": {"end_value": 0.05}},
        lambda rate, n: optax.linear_schedule(rate, 0.05, n),
    ),
    (
        {
            "schedule": "optax:polynomial_schedule",
            "schedule_options": {"end_value": 0.0, "power": 2},
        },
        lambda rate, n: optax.polynomial_schedule(rate, 0.0, 2, n),
    ),
    (
        {"schedule": "optax:cosine_onecycle_schedule"},
        lambda rate, n: optax.cosine_onecycle_schedule(n, rate),
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_a_schedule_has_the_values_of_its_formula(changes, expected):
    actual = phase_schedule(settings(**changes), STEPS)
    np.testing.assert_array_equal(values(actual), values(expected(0.2, STEPS)))


def test_warm_up_with_cosine_equals_optax():
    actual = phase_schedule(settings(schedule="cosine"), STEPS, warmup_steps=7)
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.2, 7, STEPS)
    np.testing.assert_allclose(values(actual), values(expected), rtol=1e-6, atol=1e-9)


def test_the_schedule_spans_the_steps_after_the_warm_up():
    actual = values(phase_schedule(settings(), STEPS, warmup_steps=8))
    np.testing.assert_allclose(actual[:9], 0.2 * np.arange(9) / 8, rtol=1e-6)
    np.testing.assert_array_equal(actual[8:], values(phase_schedule(settings(), 32), 32))


def test_a_warm_up_of_a_fraction_of_an_epoch_is_rounded_to_steps():
    actual = epochs_schedule(settings(warmup_epochs=0.5), range(10), 4)
    np.testing.assert_array_equal(values(actual), values(phase_schedule(settings(), STEPS, 0, 2)))


def test_parts_of_a_phase_have_schedules_and_warm_ups_of_their_own():
    recipe = settings(schedule="cosine", warmup_epochs=1)
    later = epochs_schedule(recipe, range(4, 10), 5)
    alone = epochs_schedule(recipe, range(6), 5)
    np.testing.assert_array_equal(values(later, 50)[20:], values(alone, 30))


@pytest.fixture
def halving():
    @imta_jax.register_schedule("halving")
    def halving(learning_rate, total_steps, *, parts=2):
        return lambda step: learning_rate * 0.5 ** (step * parts // total_steps)

    yield
    SCHEDULES._components.pop("halving")


def test_a_registered_schedule_gets_rate_steps_and_options(halving):
    actual = phase_schedule(settings(schedule="halving", schedule_options={"parts": 4}), STEPS)
    np.testing.assert_allclose(values(actual)[::10], [0.2, 0.1, 0.05, 0.025], rtol=1e-6)


REJECTED = [
    ({"schedule": "cosin"}, r"phase_one\.schedule 'cosin'.*first: cosine"),
    (
        {"schedule": "cosine", "schedule_options": {"alph": 1}},
        r"option of config\.phase_one\.schedule 'cosine'.*'alph'.*first: alpha",
    ),
    (
        {"schedule": "cosine", "schedule_options": {"learning_rate": 1.0}},
        r"'learning_rate' of config\.phase_one\.schedule 'cosine'",
    ),
    (
        {"schedule": "optax:linear_schedule"},
        r"phase_one\.schedule 'optax:linear_schedule'.*end_value",
    ),
    ({"schedule": "optax:constant_schedule"}, r"'optax:constant_schedule'.*learning_rate"),
    ({"schedule": "math:hypot"}, r"math:hypot cannot be a component"),
]


@pytest.mark.parametrize(("changes", "message"), REJECTED)
def test_a_schedule_that_cannot_be_built_raises_with_field_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(settings(**changes))


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda step: jnp.ones(3) * step, r"own.*one number.*\(3,\)"),
        (lambda step: 1.0 if step < 3 else 0.5, "own.*traced"),
        (lambda step: "0.1", "own.*traced.*str"),
        (lambda step: 0.1 - step, r"own.*at least 0.*-499\.9 at step 500"),
        (lambda step: jnp.log(step - 1.0), r"own.*at least 0.*nan at step 0"),
    ],
)
def test_a_schedule_that_gives_no_traced_number_raises(rate, message, monkeypatch):
    monkeypatch.setitem(SCHEDULES._components, "own", lambda learning_rate, total_steps: rate)
    with pytest.raises(ValueError, match=message):
        check_schedule(settings(schedule="own"))


def test_a_warm_up_that_leaves_no_steps_raises():
    with pytest.raises(ValueError, match=r"phase_one\.warmup_epochs.*10.*10"):
        settings(warmup_epochs=10)
    with pytest.raises(ValueError, match=r"phase_one\.warmup_epochs=2 .*8 steps.*8 steps"):
        epochs_schedule(settings(warmup_epochs=2), range(2), 4)
