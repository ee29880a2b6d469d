"""Learned gates: their inputs, targets, fit and cost."""

import numpy as np
import pytest
from sample_logits import overconfident_split

from imta_jax.evaluation.methods.learned_gate import (
    PRICES,
    GateInputs,
    best_exits,
    fit_gates,
    gate_inputs,
    gate_multiply_adds,
)

COSTS = np.array([1.0, 2.0, 4.0])


def test_inputs_of_known_probabilities():
    """Squared: 4, 1, 1 of 6."""
    logits = np.log(np.array([[[0.5, 0.25, 0.25]], [[1 / 3, 1 / 3, 1 / 3]]], np.float32))
    inputs = gate_inputs(logits, np.array([1]))
    entropy = 0.5 * np.log(2) + 0.5 * np.log(4)
    powered = 4 / 6 * np.log(6 / 4) + 2 / 6 * np.log(6)
    np.testing.assert_allclose(inputs.uncertainty, [[[0.5, entropy, 0.25, powered]]], rtol=1e-5)
    np.testing.assert_allclose(inputs.losses, [[np.log(4)], [np.log(3)]], rtol=1e-6)


def test_the_best_exit_weighs_loss_against_cost():
    losses = np.array([[2.0, 0.3, 1.0], [1.0, 0.2, 0.9], [0.5, 0.2, 0.0]])
    np.testing.assert_array_equal(best_exits(losses, COSTS, 0.0), [2, 1, 2])
    # The second exit costs 1/4 more of the full network, the last one 1/2 more.
    np.testing.assert_array_equal(best_exits(losses, COSTS, 0.5), [2, 0, 2])
    np.testing.assert_array_equal(best_exits(losses, COSTS, 1.5), [1, 0, 0])
    np.testing.assert_array_equal(best_exits(losses, COSTS, 100.0), [0, 0, 0])


def test_a_gate_learns_a_target_that_its_inputs_determine():
    """Confident images lose nothing at the first exit; others lose one nat."""
    generator = np.random.default_rng(0)
    confident = generator.random(500) < 0.2
    uncertainty = generator.normal(scale=0.1, size=(1, 500, 4))
    uncertainty[0, :, 0] += confident
    inputs = GateInputs(uncertainty, np.array([np.where(confident, 0.0, 1.0), np.zeros(500)]))
    gates = fit_gates(inputs, np.array([1.0, 2.0]), price=0.2)
    np.testing.assert_array_equal(gates.exits(uncertainty), np.where(confident, 0, 1))


def test_targets_are_balanced_over_all_gates():
    """With uninformative inputs, a gate leaves with probability 1/2 however rare its target is."""
    losses = np.zeros((2, 400))
    losses[0, 40:] = 1.0  # Only a tenth should leave at the first exit.
    gates = fit_gates(GateInputs(np.zeros((1, 400, 4)), losses), np.array([1.0, 2.0]), price=0.2)
    np.testing.assert_allclose(1 / (1 + np.exp(-gates.biases)), 0.5, atol=1e-6)


def test_higher_prices_give_cheaper_gates():
    inputs = gate_inputs(*overconfident_split(0))
    costs = np.array([10, 25, 45, 70])
    mean = [costs[fit_gates(inputs, costs, p).exits(inputs.uncertainty)].mean() for p in PRICES]
    assert mean[0] > mean[len(mean) // 2] > mean[-1]
    assert mean[-1] == costs[0]


def test_images_that_pass_no_gate_leave_at_the_last_exit():
    inputs = gate_inputs(*overconfident_split(0))
    gates = fit_gates(inputs, np.array([10, 25, 45, 70]), 0.1)
    closed = gates._replace(weights=0 * gates.weights, biases=np.full(3, -1.0))
    np.testing.assert_array_equal(closed.exits(inputs.uncertainty), 3)


@pytest.mark.parametrize(("num_exits", "expected"), [(3, [44, 88, 88]), (1, [0])])
def test_multiply_adds_exclude_a_gate_of_the_last_exit(num_exits: int, expected: list[int]):
    np.testing.assert_array_equal(gate_multiply_adds(num_exits, 10), expected)
