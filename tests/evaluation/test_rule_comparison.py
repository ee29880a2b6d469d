"""The comparison of exit rules at equal cost."""

import numpy as np
import pytest
from sample_logits import COSTS, overconfident_split

from imta_jax.evaluation import budget_curve, compare_exit_rules

SPLITS = [overconfident_split(seed, 400) for seed in (0, 1)]


@pytest.fixture(scope="module")
def rows():
    return compare_exit_rules(*SPLITS, COSTS, [0.3, 0.5, 1.0], ("confidence", "margin"))


def test_gains_are_differences_at_the_same_budget_and_lie_in_their_intervals(rows):
    assert [(row["rule"], row["budget"]) for row in rows] == [
        (rule, budget) for rule in ("confidence", "margin") for budget in (0.3, 0.5, 1.0)
    ]
    for first, row in zip(rows[:3] * 2, rows, strict=True):
        assert row["gain"] == pytest.approx(row["top1"] - first["top1"], abs=1e-4)
        assert row["gain_low"] - 1e-9 <= row["gain"] <= row["gain_high"] + 1e-9
        assert row["mean_cost"] == pytest.approx(row["budget"], abs=0.1)


def test_at_the_cost_of_a_point_the_accuracy_is_that_of_the_budget_curve():
    curve = budget_curve(*SPLITS, COSTS)
    point = 12
    budget = curve.validation_cost[point] / COSTS[-1]
    (row,) = compare_exit_rules(*SPLITS, COSTS, [budget], ("confidence",))
    assert row["top1"] == pytest.approx(curve.accuracy[point], abs=1e-4)
    assert row["mean_cost"] == pytest.approx(curve.mean_cost[point] / COSTS[-1])


def test_at_the_full_cost_all_rules_are_the_last_exit(rows):
    last = 100 * (SPLITS[1].logits[-1].argmax(-1) == SPLITS[1].labels).mean()
    for row in rows:
        if row["budget"] == 1:
            np.testing.assert_allclose(row["top1"], last, rtol=1e-6)
