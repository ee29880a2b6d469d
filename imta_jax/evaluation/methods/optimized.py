"""Thresholds that maximize validation accuracy under a budget, with one threshold per exit.

The geometric sweep has one parameter. Here every exit has its own threshold:

    max over t_1..t_(E-1) of mean correct[exit(n), n]   with   mean cost[exit(n)] <= budget

`pair_search` solves this on a grid of thresholds, two exits at a time. With up to three exits the
result is optimal on the grid. With more exits, no change of two thresholds improves it; random
restarts found nothing better. A Lagrangian search would reach only points on the concave hull of
(cost, accuracy).

The search starts from the sweep's best point within each budget, so it is never worse on validation
images. It has more freedom and can overfit them. A coarse grid of quantiles (`levels`) limits that;
`comparison` measures how much of the gain remains on test images.
"""

from collections.abc import Sequence

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Float, Float32, Float64, Int, Num
from imta_jax.evaluation.budget import (
    DEFAULT_QUOTAS,
    Outcomes,
    checked_costs,
    checked_outcomes,
    correct_at,
)
from imta_jax.evaluation.methods.pair_search import GridProblem, score_of, search
from imta_jax.evaluation.thresholds import (
    ALWAYS_LEAVE,
    NEVER_LEAVE,
    exit_of,
    geometric_quota,
    thresholds_for_quota,
)

# Relative tolerance of budgets against sums of costs, both float64.
_ROUNDING = 1e-12


def optimized_thresholds(
    confidence: ArrayLike,
    correct: ArrayLike,
    costs: object,
    budgets: Sequence[float] | np.ndarray,
    *,
    starts: ArrayLike | None = None,
    levels: int = 64,
) -> Float32[np.ndarray, "B E"]:
    """The most accurate thresholds found for each budget on the given images.

    Args:
      confidence: [E, N] finite confidences of validation images.
      correct: [E, N] booleans, whether each exit is correct.
      costs: [E] cumulative cost per exit, or an object with these as `.macs`.
      budgets: [B] largest mean cost per image, in the unit of the costs.
      starts: thresholds [S, E]. The result is at least as accurate as each start within the budget.
        The default is the geometric sweep. The thresholds that use one exit for all images are
        always added.
      levels: number of quantiles of each exit's confidences on the grid, in addition to those of
        the starts.

    Returns:
      Thresholds whose mean cost on these images is within each budget.

    Raises:
      ValueError: shapes that disagree, invalid costs, `levels` below 1, or a budget below the first
        exit's cost.
    """
    confidence, correct = checked_outcomes(confidence, correct)
    num_exits, num_images = confidence.shape
    costs = checked_costs(costs, num_exits).astype(np.float64)
    budgets = _checked_budgets(budgets, costs)
    if levels < 1:
        raise InputError(f"levels={levels}; expected at least 1, usually 64")
    starts = _checked_starts(starts, confidence)
    by_budget = np.argsort(budgets, kind="stable")
    totals = budgets[by_budget] * num_images * (1 + _ROUNDING)
    outcomes = Outcomes(confidence, correct)
    starts = _best_starts(outcomes, costs, totals, starts)
    problem = _on_grid(outcomes, costs, totals, starts, levels)
    open_levels = search(problem, _open_levels(problem, starts))
    thresholds = np.empty((len(budgets), num_exits), np.float32)
    thresholds[by_budget] = _thresholds(problem, open_levels)
    thresholds[:, -1] = ALWAYS_LEAVE
    return thresholds


def one_exit_thresholds(num_exits: int) -> Float32[np.ndarray, "E E"]:
    """Thresholds in row e with which all images leave at exit e."""
    earlier = np.arange(num_exits)[None, :] < np.arange(num_exits)[:, None]
    return np.where(earlier, NEVER_LEAVE, ALWAYS_LEAVE).astype(np.float32)


def _best_starts(
    outcomes: Outcomes,
    costs: Float64[np.ndarray, " E"],
    totals: Float64[np.ndarray, " B"],
    starts: Float32[np.ndarray, "S E"],
) -> Float32[np.ndarray, "B E"]:
    """For each budget the best start within it."""
    exits = exit_of(outcomes.confidence, starts)
    cost = costs.take(exits).sum(axis=1)
    num_correct = correct_at(exits, outcomes.correct).sum(axis=1)
    score = score_of(num_correct, cost, costs[-1] * exits.shape[1])
    fits = cost[None, :] <= totals[:, None]
    return starts[np.where(fits, score[None, :], -np.inf).argmax(axis=1)]


def _on_grid(
    outcomes: Outcomes,
    costs: Float64[np.ndarray, " E"],
    totals: Float64[np.ndarray, " B"],
    starts: Float32[np.ndarray, "B E"],
    levels: int,
) -> GridProblem:
    """Quantiles of each exit's confidences and the starts' thresholds as a grid."""
    num_images = outcomes.confidence.shape[1]
    ranks = np.unique(np.linspace(0, num_images - 1, min(levels, num_images)).astype(int))
    grids = [
        _grid(np.sort(c)[::-1][ranks], starts[:, i]) for i, c in enumerate(outcomes.confidence[:-1])
    ]
    grids.append(np.array([ALWAYS_LEAVE], np.float32))
    level = [
        1 + np.searchsorted(-grid, -c)  # number of thresholds above the confidence, plus 1
        for grid, c in zip(grids, outcomes.confidence, strict=True)
    ]
    correct = outcomes.correct.astype(np.float64)
    return GridProblem(grids, np.array(level, np.int32), correct, costs, totals)


def _grid(
    quantiles: Float32[np.ndarray, " Q"], starts: Float32[np.ndarray, " B"]
) -> Float32[np.ndarray, " G"]:
    """Falling, distinct thresholds with ALWAYS_LEAVE last and without NEVER_LEAVE."""
    values = np.concatenate([quantiles, starts, np.array([ALWAYS_LEAVE], np.float32)])
    return np.unique(values[values < np.float32(NEVER_LEAVE)])[::-1]


def _thresholds(
    problem: GridProblem, open_levels: Int[np.ndarray, "B E"]
) -> Float32[np.ndarray, "B E"]:
    """Numbers of open levels as thresholds."""
    columns = [
        np.concatenate([np.array([NEVER_LEAVE], np.float32), grid])[open_levels[:, i]]
        for i, grid in enumerate(problem.grids)
    ]
    return np.stack(columns, axis=1)


def _open_levels(
    problem: GridProblem, thresholds: Float32[np.ndarray, "B E"]
) -> Int[np.ndarray, "B E"]:
    """Thresholds on the grid as numbers of open levels."""
    open_levels = [
        np.searchsorted(-grid, -thresholds[:, i], side="right")
        for i, grid in enumerate(problem.grids)
    ]
    return np.stack(open_levels, axis=1)


def _checked_starts(
    starts: ArrayLike | None, confidence: Float32[np.ndarray, "E N"]
) -> Float32[np.ndarray, "S E"]:
    num_exits = len(confidence)
    if starts is None:
        starts = thresholds_for_quota(confidence, geometric_quota(DEFAULT_QUOTAS, num_exits))
    starts = np.asarray(starts, np.float32)
    if starts.ndim != 2 or starts.shape[1] != num_exits:
        raise InputError(f"starts of shape {starts.shape}; expected thresholds [S, {num_exits}]")
    return np.concatenate([starts, one_exit_thresholds(num_exits)])


def _checked_budgets(
    budgets: Sequence[float] | np.ndarray, costs: Num[np.ndarray, " E"]
) -> Float[np.ndarray, " B"]:
    budgets = np.asarray(budgets, np.float64)
    if budgets.ndim != 1 or budgets.size == 0 or np.isnan(budgets).any():
        raise InputError(f"budgets={budgets}; expected a sequence of mean costs per image")
    if budgets.min() < costs[0] * (1 - _ROUNDING):
        raise InputError(
            f"budgets contain {budgets.min():g} per image, less than the cost of the first exit, "
            f"{costs[0]:g}: raise the budget"
        )
    return budgets
