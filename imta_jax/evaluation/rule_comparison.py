"""Comparison of exit rules at equal cost, on saved logits. Needs JAX."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.budget import DEFAULT_QUOTAS, checked_costs, correct_at
from imta_jax.evaluation.exit_scores import outcomes_of_rule
from imta_jax.evaluation.methods.comparison import checked_budgets, correct_at_cost
from imta_jax.evaluation.methods.intervals import bootstrap_interval
from imta_jax.evaluation.methods.selection import sweep_thresholds
from imta_jax.evaluation.predictions import Predictions
from imta_jax.evaluation.thresholds import exit_of
from imta_jax.techniques.exit_rules import ExitRule, get_exit_rule


def compare_exit_rules(
    validation: Predictions,
    test: Predictions,
    costs: object,
    budgets: ArrayLike,
    rules: Sequence[str | ExitRule] = ("confidence", "entropy", "margin", "learned_gate"),
    *,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    confidence_level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures exit rules at the same mean cost of validation images, image by image.

    Each rule has its own geometric sweep, chosen on validation images. Between two points of the
    sweep, a budget is a random mixture of the two.

    Args:
      validation: logits [E, N, K] and labels [N] of validation images.
      test: the same of test images.
      costs: [E] cumulative costs, or an object with these as `.macs`.
      budgets: [B] mean costs as fractions of the last exit's cost.
      rules: names, or rules with options. Gains are differences from the first one.
      quotas: quotas of the sweeps (see `geometric_quota`).
      confidence_level: confidence level of the intervals.
      resamples: number of bootstrap resamples of the test images.
      seed: seed of the bootstrap.

    Returns:
      Per rule and budget: `rule`, `budget`, `top1` in percent, `mean_cost` (fraction of the last
      exit's cost, on test images), and `gain`, `gain_low`, `gain_high` in percentage points.

    Raises:
      ValueError: invalid predictions, costs or rules, or a budget below the first exit's cost.
    """
    costs = checked_costs(costs, len(validation.logits)).astype(np.float64)
    fractions = checked_budgets(budgets, costs)
    sweeps = [
        _at_costs(get_exit_rule(rule).fitted(*validation, costs), validation, test, costs, quotas)
        for rule in rules
    ]
    measured = [sweep.at(fractions * costs[-1]) for sweep in sweeps]
    rows = []
    for rule, (correct, cost) in zip(rules, measured, strict=True):
        gain = correct - measured[0][0]
        ends = bootstrap_interval(gain, level=confidence_level, resamples=resamples, seed=seed)
        name = rule if isinstance(rule, str) else rule.name
        rows += _rows(name, fractions, correct, cost / costs[-1], gain, ends)
    return rows


def _rows(
    rule: str,
    budgets: Float[np.ndarray, " B"],
    correct: Float[np.ndarray, "B N"],
    mean_cost: Float[np.ndarray, " B"],
    gain: Float[np.ndarray, "B N"],
    gain_interval: Float[np.ndarray, "B 2"],
) -> list[dict[str, Any]]:
    """The rows of a rule. Costs are fractions of the last exit's cost."""
    return [
        {
            "rule": rule,
            "budget": float(budgets[b]),
            "top1": 100 * float(correct[b].mean()),
            "mean_cost": float(mean_cost[b]),
            "gain": 100 * float(gain[b].mean()),
            "gain_low": 100 * float(gain_interval[b, 0]),
            "gain_high": 100 * float(gain_interval[b, 1]),
        }
        for b in range(len(budgets))
    ]


class _Sweep(NamedTuple):
    """S points of a rule's sweep."""

    validation_cost: Float64[np.ndarray, " S"]
    test_cost: Float64[np.ndarray, " S"]
    test_correct: Bool[np.ndarray, "S N"]

    def at(
        self, cost: Float64[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B N"], Float[np.ndarray, " B"]]:
        """Correctness per test image and mean cost on test images, at validation costs."""
        order = np.argsort(self.validation_cost, kind="stable")
        mean_cost = np.interp(cost, self.validation_cost[order], self.test_cost[order])
        return correct_at_cost(self.validation_cost, self.test_correct, cost), mean_cost


def _at_costs(
    rule: ExitRule,
    validation: Predictions,
    test: Predictions,
    costs: Float64[np.ndarray, " E"],
    quotas: Sequence[float],
) -> _Sweep:
    on_validation, on_test = (outcomes_of_rule(split, rule) for split in (validation, test))
    thresholds = sweep_thresholds(on_validation.confidence, quotas)
    exits = exit_of(on_test.confidence, thresholds)
    return _Sweep(
        costs[exit_of(on_validation.confidence, thresholds)].mean(axis=1),
        costs[exits].mean(axis=1),
        correct_at(exits, on_test.correct),
    )
