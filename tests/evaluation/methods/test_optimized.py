"""Optimized thresholds: optimality by brute force, budgets and invalid input."""

import itertools

import numpy as np
import pytest
from sample_logits import COSTS, measure, random_outcomes

from imta_jax.evaluation.budget import Outcomes, curve_of_outcomes
from imta_jax.evaluation.methods.optimized import optimized_thresholds


def brute_force(outcomes: Outcomes, costs, budget: float) -> int:
    """Largest number of correct predictions of any thresholds within the budget."""
    values = [np.r_[np.unique(c), 1e8] for c in outcomes.confidence[:-1]]
    every = np.array([(*t, -1e8) for t in itertools.product(*values)], np.float32)
    num_correct, cost = measure(outcomes, every, costs)
    return int(num_correct[cost <= budget * (1 + 1e-12)].max())


@pytest.mark.parametrize("num_exits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_up_to_three_exits_the_result_is_optimal(num_exits, seed):
    small, costs = random_outcomes(seed, 25, num_exits), COSTS[:num_exits]
    budgets = np.linspace(costs[0], costs[-1], 5)
    thresholds = optimized_thresholds(*small, costs, budgets)
    num_correct, cost = measure(small, thresholds, costs)
    assert num_correct.tolist() == [brute_force(small, costs, b) for b in budgets]
    assert (cost <= budgets * (1 + 1e-9)).all()


def test_with_four_exits_the_result_is_nearly_always_optimal():
    missed = []
    for seed in range(12):
        small, budgets = random_outcomes(seed, 12), np.linspace(COSTS[0], COSTS[-1], 5)
        num_correct, _ = measure(small, optimized_thresholds(*small, COSTS, budgets), COSTS)
        missed += list(np.array([brute_force(small, COSTS, b) for b in budgets]) - num_correct)
    assert min(missed) == 0 and max(missed) <= 1
    assert np.mean(np.array(missed) > 0) <= 0.1


@pytest.mark.parametrize("levels", [1, 16, 64])
def test_result_is_within_the_budget_and_never_worse_than_the_sweep(levels):
    validation = random_outcomes(0, 700)
    curve = curve_of_outcomes(validation, validation, COSTS)
    budgets = np.random.default_rng(0).uniform(11, 70, 20)
    thresholds = optimized_thresholds(*validation, COSTS, budgets, levels=levels)
    num_correct, cost = measure(validation, thresholds, COSTS)
    assert (cost <= budgets).all()
    for budget, accuracy in zip(budgets, num_correct / 7, strict=True):
        affordable = curve.validation_accuracy[curve.validation_cost <= budget]
        assert accuracy >= affordable.max(initial=0) - 1e-9
    assert (np.diff(num_correct[np.argsort(budgets)]) >= 0).all()


def test_result_is_never_worse_than_its_starts():
    validation, costs = random_outcomes(3, 300, 5), np.arange(1, 6) / 3
    starts = np.sort(np.random.default_rng(1).uniform(0.1, 1, (30, 5)), axis=1)[:, ::-1]
    num_correct, cost = measure(validation, starts, costs)
    thresholds = optimized_thresholds(*validation, costs, cost, starts=starts)
    improved, improved_cost = measure(validation, thresholds, costs)
    assert (improved >= num_correct).all()
    assert (improved_cost <= cost * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [9.0]}, r"budgets .*\b9\b.*\b10\b"),
        ({"budgets": []}, r"budgets=\[\]"),
        ({"levels": 0}, "levels=0"),
        ({"starts": np.zeros((2, 3))}, r"starts .*\(2, 3\).*\[S, 4\]"),
        ({"costs": COSTS[:2]}, r"costs .*\(2,\).*4 exits"),
    ],
)
def test_invalid_arguments_raise(changes, message):
    arguments = {"costs": COSTS, "budgets": [30.0]} | changes
    with pytest.raises(ValueError, match=message):
        optimized_thresholds(*random_outcomes(0, 20), **arguments)
