"""Loss functions as objectives: arguments by name, reductions, and errors before training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.runtime.registry import OBJECTIVES
from imta_jax.techniques import cross_entropy, one_for_all_loss
from imta_jax.training.loss_objective import LossObjective, check_loss
from imta_jax.training.setup import (
    new_phase_one,
    new_phase_two,
    phase_one_objective,
    phase_two_objective,
)

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 0])
TEACHER = LOGITS[-1] + 1.0


@pytest.fixture(autouse=True)
def losses(monkeypatch):
    inputs = {
        "per_exit": lambda logits, labels: cross_entropy(logits, labels),
        "scaled": lambda logits, labels, *, scale=1.0: scale * cross_entropy(logits, labels).sum(),
        "with_teacher": lambda logits, labels, teacher_logits, *, alpha: one_for_all_loss(
            logits, labels, teacher_logits, alpha=alpha, temperature=2.0
        ),
        "wrong_shape": lambda logits, labels: logits,
        "no_labels": lambda logits: logits.sum(),
        "teacher_second": lambda logits, teacher_logits: logits.sum(),
        "option_second": lambda logits, gamma: logits.sum(),
        "needs_margin": lambda logits, labels, *, margin: margin,
    }
    for name, loss in inputs.items():
        monkeypatch.setitem(OBJECTIVES._components, name, loss)


def config(**changes):
    return tiny_run.run_config("unused.npz", **changes)


@pytest.mark.parametrize("exit_losses, reduce", [("sum", jnp.sum), ("mean", jnp.mean)])
def test_losses_per_exit_are_reduced_like_the_default(exit_losses, reduce):
    changes = {"phase_one__objective": "per_exit", "phase_one__exit_losses": exit_losses}
    objective = phase_one_objective(config(**changes))
    total = objective.total(LOGITS, LABELS, TEACHER)
    np.testing.assert_allclose(total, reduce(cross_entropy(LOGITS, LABELS)), rtol=1e-6)


def test_options_and_fields_of_the_phase_are_passed_by_name():
    options = {"phase_one__objective": "scaled", "phase_one__objective_options": {"scale": 3.0}}
    objective = phase_one_objective(config(**options))
    expected = 3 * cross_entropy(LOGITS, LABELS).sum()
    np.testing.assert_allclose(objective.total(LOGITS, LABELS, TEACHER), expected, rtol=1e-6)
    changes = {"phase_two__objective": "with_teacher", "phase_two__alpha": 0.3}
    second = phase_two_objective(config(**changes))
    expected = one_for_all_loss(LOGITS, LABELS, TEACHER, alpha=0.3, temperature=2.0)
    np.testing.assert_allclose(second.total(LOGITS, LABELS, TEACHER), expected, rtol=1e-6)


def test_the_teacher_gets_no_gradient():
    def loss(logits, labels, teacher_logits):
        return (logits[-1] * teacher_logits).sum()

    objective = LossObjective(None, "sum", loss, {}, "loss")
    gradient = jax.grad(lambda teacher: objective.total(LOGITS, LABELS, teacher))(TEACHER)
    assert not gradient.any()


def test_own_cross_entropy_has_the_gradients_of_the_default():
    classifier = new_phase_one(config(), tiny_run.INFO)
    batch = tiny_run.draw_batch(6, 0)
    images = jnp.asarray(batch.images, jnp.float32) / 255
    gradients = []
    for name in ("cross_entropy", "per_exit"):
        objective = phase_one_objective(config(phase_one__objective=name))
        objective.set_mode(classifier)
        loss = nnx.grad(lambda c, o=objective: o(c, images, batch.labels)[0])
        gradients.append(nnx.to_pure_dict(loss(classifier)))
    first, second = map(jax.tree.leaves, gradients)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_backbone_gets_no_gradient_in_phase_two():
    settings = config(phase_two__objective="per_exit")
    classifier = new_phase_two(settings, new_phase_one(settings, tiny_run.INFO))
    objective = phase_two_objective(settings)
    objective.set_mode(classifier)
    batch = tiny_run.draw_batch(6, 0)
    images = jnp.asarray(batch.images, jnp.float32) / 255
    gradients = nnx.grad(lambda c: objective(c, images, batch.labels)[0])(classifier)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["backbone"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradients["heads"]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "per_exitt"}, r"config\.phase_one\.objective 'per_exitt'.*first: per_exit"),
        ({"objective": "needs_margin"}, r"'needs_margin'.*'margin'.*objective_options\.margin"),
        ({"objective": "no_labels"}, r"'no_labels'.*\(logits\).*\(logits, labels\)"),
        ({"objective": "teacher_second"}, r"'teacher_second'.*\(logits, labels\)"),
        (
            {"objective": "option_second", "objective_options": {"gamma": 1.0}},
            r"'option_second'.*\(logits, gamma\).*\(logits, labels\)",
        ),
        (
            {"objective": "scaled", "objective_options": {"scal": 2.0}},
            r"'scaled'.*'scal'.*first: scale",
        ),
    ],
)
def test_errors_name_the_loss_and_the_option(changes, message):
    with pytest.raises(InputError, match=message):
        phase_one_objective(config(**{f"phase_one__{k}": v for k, v in changes.items()}))


def test_a_loss_of_another_shape_is_rejected_before_training():
    objective = phase_one_objective(config(phase_one__objective="wrong_shape"))
    with pytest.raises(InputError, match=r"'wrong_shape'.*\(2,\).*found \(2, 2, 3\)"):
        check_loss(objective, 2, 3)


def stateful_loss(state, logits, labels):
    state.append(cross_entropy(logits, labels).mean() + state[-1])
    return state[-1]


def variable_loss(variable, logits, labels):
    variable[...] = cross_entropy(logits, labels).mean() + variable[...]
    return variable[...]


BAD_LOSSES = {
    "complex": (lambda logits, labels: logits.mean() * 1j, r"floating-point.*complex64"),
    "integer": (lambda logits, labels: (logits > 0).sum(), r"floating-point.*int32"),
    "failing": (lambda logits, labels: 1 // 0, r"ZeroDivisionError.*test_loss_objective\.py"),
    "stateful": (functools.partial(stateful_loss, [0.0]), "stores an array.*variable of the heads"),
    "variable": (
        functools.partial(variable_loss, nnx.Variable(jnp.zeros(()))),
        "stores an array.*variable of the heads",
    ),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_loss_that_fails_or_keeps_state_is_rejected_before_training(name):
    loss, message = BAD_LOSSES[name]
    with pytest.raises(InputError, match=rf"config\.objective.*{message}"):
        check_loss(LossObjective(None, "sum", loss, {}, "config.objective"), 2, 3)
