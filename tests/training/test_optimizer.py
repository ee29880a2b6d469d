"""Stochastic gradient descent against PyTorch's formula, and the paper's learning rates."""

import re

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imta_jax.training.optimizer import sgd
from imta_jax.training.schedules import step_schedule


def pytorch_sgd(param, gradients, rates, momentum, nesterov, weight_decay):
    """Yields the parameter after every step of torch.optim.SGD, in NumPy."""
    buffer = np.zeros_like(param)
    for gradient, rate in zip(gradients, rates, strict=True):
        decayed = gradient + weight_decay * param
        buffer = momentum * buffer + decayed
        param = param - rate * (decayed + momentum * buffer if nesterov else buffer)
        yield param


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_pytorch_at_every_step(nesterov, weight_decay):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(8, 5)).astype(np.float32)
    start = rng.normal(size=5).astype(np.float32)
    schedule = step_schedule(0.1, (0.5,), 0.1, total_steps=8)
    tx = sgd(schedule, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    expected = pytorch_sgd(start, gradients, [0.1] * 4 + [0.01] * 4, 0.9, nesterov, weight_decay)
    params, state = jnp.asarray(start), tx.init(start)
    for gradient, after in zip(gradients, expected, strict=True):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(params, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "drops", "at_epochs"),
    [(300, (0.5, 0.75), (150, 225)), (180, (0.5, 0.75), (90, 135)), (90, (1 / 3, 2 / 3), (30, 60))],
)
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 703, 4804])
def test_learning_rate_drops_at_the_papers_epochs(epochs, drops, at_epochs, steps_per_epoch):
    schedule = step_schedule(0.1, drops, 0.1, epochs * steps_per_epoch)
    for i, epoch in enumerate(at_epochs):
        first = epoch * steps_per_epoch
        assert float(schedule(first - 1)) == pytest.approx(0.1 * 0.1**i)
        assert float(schedule(first)) == pytest.approx(0.1 * 0.1 ** (i + 1))
    assert float(schedule(epochs * steps_per_epoch - 1)) == pytest.approx(0.001)


def test_drops_at_the_same_step_multiply():
    schedule = step_schedule(0.1, (0.5, 0.5), 0.1, total_steps=4)
    assert [float(schedule(i)) for i in range(4)] == pytest.approx([0.1, 0.1, 0.001, 0.001])
    short = step_schedule(0.1, (0.5, 0.75), 0.1, total_steps=1)  # Both round to the same step.
    assert float(short(0)) * float(short(1)) > 0


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_learning_rate_that_is_not_above_zero_raises(rate):
    with pytest.raises(ValueError, match=rf"learning_rate.*{rate}"):
        step_schedule(rate, (0.5,), 0.1, 10)


@pytest.mark.parametrize("drops", [(1.5,), (-0.1, 0.5), (150, 225)])
def test_drops_that_are_not_fractions_raise(drops):
    with pytest.raises(ValueError, match=rf"learning_rate_drops.*{re.escape(str(drops))}"):
        step_schedule(0.1, drops, 0.1, 10)
