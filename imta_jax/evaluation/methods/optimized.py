"""Thresholds that maximise validation accuracy under a budget, exit against exit.

The geometric sweep has one parameter; here every exit has its own. The problem

    max over t_1..t_(E-1) of mean correct[exit(n), n]   with   mean cost[exit(n)] <= budget

is searched two exits at a time: with the others fixed, accuracy and cost of *every* pair of their
thresholds come out of one two-dimensional histogram and its cumulative sums, so that the best pair
within the budget is exact, and compute can move from one exit to the other where a search along
single thresholds is stuck at the budget. All budgets are searched at once. A Lagrangian search
would reach only points of the concave hull of (cost, accuracy); this one has no such gaps. With up
to three exits the result is the best there is on the grid, with more it is a point that no change
of two thresholds betters; other starts, drawn at random, ended no better.

It starts from the sweep's best point within each budget, so it is never worse on validation images;
as it has more freedom it also fits their chance more. A coarse grid of quantiles (`levels`) holds
that back; how much of the gain is left on test images is what `comparison` measures.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imta_jax.evaluation.budget import (
    DEFAULT_QUOTAS,
    Outcomes,
    checked_costs,
    checked_outcomes,
)
from imta_jax.evaluation.thresholds import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    exit_of,
    geometric_quota,
    thresholds_for_quota,
)

# Rounds over all pairs; a search usually rests after three or four.
_MOST_ROUNDS = 20
# Relative; costs are summed, and budgets multiplied out, in float64.
_ROUNDING = 1e-12


class _Problem(NamedTuple):
    """What the search looks at: thresholds as numbers of open levels on a grid per exit.

    An image leaves at exit i if its level there is at most the number of levels open.

    Attributes:
      grids: per exit, float32 [G_i] falling thresholds; the last lets everybody leave.
      level: int32 [E, N], from 1 to G_i.
      correct: float64 [E, N], 0 or 1.
      costs: float64 [E].
      budgets: float64 [B], for all images together.
    """

    grids: list[np.ndarray]
    level: np.ndarray
    correct: np.ndarray
    costs: np.ndarray
    budgets: np.ndarray


def optimised_thresholds(
    confidence: np.ndarray,
    correct: np.ndarray,
    costs: object,
    budgets: Sequence[float] | np.ndarray,
    *,
    starts: np.ndarray | None = None,
    levels: int = 64,
) -> np.ndarray:
    """The most accurate thresholds found for each budget, on the images given.

    Args:
      confidence: [E, N], of validation images; finite.
      correct: booleans [E, N], whether each exit is right.
      costs: [E] cumulative cost per exit, or an object whose `.macs` holds them.
      budgets: [B], largest mean cost per image, in the unit of the costs.
      starts: thresholds [S, E], the result is never worse than those of them that fit the budget;
        default, the geometric sweep. Leaving at one exit for all is always tried as well.
      levels: quantiles of each exit's confidences that are tried besides the starts' thresholds.

    Returns:
      float32 [B, E]; the mean cost of these images is within each budget.

    Raises:
      ValueError: shapes that disagree, unusable costs, a budget that the first exit alone exceeds.
    """
    confidence, correct = checked_outcomes(confidence, correct)
    num_exits, num_images = confidence.shape
    costs = checked_costs(costs, num_exits).astype(np.float64)
    budgets = _checked_budgets(budgets, costs)
    if starts is None:
        starts = thresholds_for_quota(confidence, geometric_quota(DEFAULT_QUOTAS, num_exits))
    rising = np.argsort(budgets, kind="stable")
    totals = budgets[rising] * num_images * (1 + _ROUNDING)
    outcomes = Outcomes(confidence, correct)
    starts = np.asarray(starts, np.float32)
    if starts.ndim != 2 or starts.shape[1] != num_exits:
        raise ValueError(f"starts of shape {starts.shape}; expected thresholds [S, {num_exits}]")
    starts = np.concatenate([starts, one_exit_thresholds(num_exits)])
    starts = _best_starts(outcomes, costs, totals, starts)
    problem = _on_grid(outcomes, costs, totals, starts, levels)
    opened = _searched(problem, _opened(problem, starts))
    thresholds = np.empty((len(budgets), num_exits), np.float32)
    thresholds[rising] = _thresholds(problem, opened)
    thresholds[:, -1] = EVERYBODY_LEAVES
    return thresholds


def one_exit_thresholds(num_exits: int) -> np.ndarray:
    """Row e sends every image to exit e: float32 [E, E]."""
    above = np.arange(num_exits)[None, :] < np.arange(num_exits)[:, None]
    return np.where(above, NOBODY_LEAVES, EVERYBODY_LEAVES).astype(np.float32)


def _best_starts(
    outcomes: Outcomes, costs: np.ndarray, budgets: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """For each budget [B] the best of the starts [S, E] within it: [B, E]."""
    exits = exit_of(outcomes.confidence, starts)
    score, cost = _scores(outcomes.correct, costs, exits)
    allowed = cost[None, :] <= budgets[:, None]
    return starts[np.where(allowed, score[None, :], -np.inf).argmax(axis=1)]


def _on_grid(
    outcomes: Outcomes, costs: np.ndarray, budgets: np.ndarray, starts: np.ndarray, levels: int
) -> _Problem:
    if levels < 1:
        raise ValueError(f"{levels} levels asked for; expected at least 1, usually 64")
    num_images = outcomes.confidence.shape[1]
    at = np.unique(np.linspace(0, num_images - 1, min(levels, num_images)).astype(int))
    grids = [
        _grid(np.sort(c)[::-1][at], starts[:, i]) for i, c in enumerate(outcomes.confidence[:-1])
    ]
    grids.append(np.array([EVERYBODY_LEAVES], np.float32))
    level = [
        1 + np.searchsorted(-grid, -c)  # so many thresholds lie above the confidence
        for grid, c in zip(grids, outcomes.confidence, strict=True)
    ]
    correct = outcomes.correct.astype(np.float64)
    return _Problem(grids, np.array(level, np.int32), correct, costs, budgets)


def _grid(quantiles: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Falling thresholds without repetition, "everybody" last and "nobody" left out."""
    every = np.concatenate([quantiles, starts, np.float32([EVERYBODY_LEAVES])])
    return np.unique(every[every < np.float32(NOBODY_LEAVES)])[::-1]


def _thresholds(problem: _Problem, opened: np.ndarray) -> np.ndarray:
    """Numbers of open levels [B, E] as thresholds float32 [B, E]."""
    columns = [
        np.concatenate([np.float32([NOBODY_LEAVES]), grid])[opened[:, i]]
        for i, grid in enumerate(problem.grids)
    ]
    return np.stack(columns, axis=1)


def _opened(problem: _Problem, thresholds: np.ndarray) -> np.ndarray:
    """Thresholds [B, E] on the grid as numbers of open levels [B, E]."""
    opened = [
        np.searchsorted(-grid, -thresholds[:, i], side="right")
        for i, grid in enumerate(problem.grids)
    ]
    return np.stack(opened, axis=1)


def _scores(
    correct: np.ndarray, costs: np.ndarray, exits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Score and total cost [S] of exits [S, N]."""
    right = correct[exits, np.arange(exits.shape[1])[None, :]].sum(axis=1)
    cost = costs.take(exits).sum(axis=1)
    return _score(right, cost, costs[-1] * exits.shape[1]), cost


def _score(right: np.ndarray, cost: np.ndarray, most: float) -> np.ndarray:
    """Right answers first; among equally many the cheaper, which counts less than one of them."""
    return right - 0.5 * cost / most


def _searched(problem: _Problem, opened: np.ndarray) -> np.ndarray:
    """Betters pair after pair until nothing changes; budgets rise along the rows of [B, E]."""
    num_exits = len(problem.grids)
    # Of two exits only the first has a choice; its pair is the last, whose grid is one level.
    choosing = range(max(num_exits - 1, 2)) if num_exits > 1 else ()
    changed = np.arange(len(opened))
    for _ in range(_MOST_ROUNDS):
        before, part = opened, opened[changed]
        of_changed = problem._replace(budgets=problem.budgets[changed])
        for pair in itertools.combinations(choosing, 2):
            part = _best_pair(of_changed, part, *pair)
        opened = opened.copy()
        opened[changed] = part
        opened = _shared(problem, opened)
        changed = np.flatnonzero((opened != before).any(axis=1))
        if changed.size == 0:
            break
    return opened


def _shared(problem: _Problem, opened: np.ndarray) -> np.ndarray:
    """Lets each budget take over what a smaller one has found, if that is better."""
    exits = _first(_leaving(problem, opened), 0)
    score, _ = _scores(problem.correct, problem.costs, exits)
    record = np.r_[True, score[1:] > np.maximum.accumulate(score)[:-1]]
    return opened[np.maximum.accumulate(np.where(record, np.arange(len(score)), 0))]


def _best_pair(problem: _Problem, opened: np.ndarray, i: int, j: int) -> np.ndarray:
    """The best levels of exits i < j for every budget [B, E], all others as they are."""
    correct, cost = _pair_tables(problem, opened, i, j)
    most = problem.costs[-1] * problem.level.shape[1]
    score = np.where(cost <= problem.budgets[:, None, None], _score(correct, cost, most), -np.inf)
    rows = np.arange(len(opened))
    flat = score.reshape(len(opened), -1)
    best = flat.argmax(axis=1)
    better = flat[rows, best] > score[rows, opened[:, i], opened[:, j]]
    found = np.stack(np.unravel_index(best, score.shape[1:]), axis=1)
    bettered = opened.copy()
    bettered[:, [i, j]] = np.where(better[:, None], found, opened[:, [i, j]])
    return bettered


def _pair_tables(
    problem: _Problem, opened: np.ndarray, i: int, j: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and cost of all images, [B, G_i + 1, G_j + 1], at every pair of open levels.

    An image that reaches exit i leaves there, or at an exit between, or at j, or at one after. So
    the sum is that of images which pass both, plus what changes for those that leave at i (by
    level at i), plus what changes for those that pass i and leave at j (by both levels).
    """
    leaves = _leaving(problem, opened)
    between = _first(leaves[i + 1 : j], i + 1)  # j if at none of them
    after = _first(leaves[j + 1 :], j + 1) if j + 1 < len(leaves) else j
    passing = np.where(between < j, between, after)
    before = _first(leaves[:i], 0)  # i if at none of them
    final = np.where(before < i, before, passing)  # [B, N], of images that pass both
    images = np.arange(final.shape[1])
    right = problem.correct.ravel().take(final * len(images) + images)
    spent = problem.costs.take(final)
    at_i = np.flatnonzero(before == i)
    at_both = np.flatnonzero((before == i) & (between == j))
    cells_i, cells_both = _cells(problem, at_i, i), _cells(problem, at_both, i, j)
    tables = []
    for of_final, of_i, of_j in (
        (right, problem.correct[i], problem.correct[j]),
        (spent, problem.costs[[i]], problem.costs[[j]]),
    ):
        shape = (len(opened), *(len(problem.grids[e]) for e in (i, j)))
        by_i = np.bincount(cells_i, (of_i - of_final).take(at_i), np.prod(shape[:2]))
        by_both = np.bincount(cells_both, (of_j - of_final).take(at_both), np.prod(shape))
        tables.append(
            of_final.sum(axis=1)[:, None, None]
            + _up_to(by_i.reshape(shape[:2]))[:, :, None]
            + _beyond(_up_to(by_both.reshape(shape)))
        )
    return tables[0], tables[1]


def _leaving(problem: _Problem, opened: np.ndarray) -> np.ndarray:
    """Whether each image that reaches an exit leaves there, all at the last: bool [E, B, N]."""
    leaves = problem.level[:, None, :] <= opened.T[:, :, None]
    leaves[-1] = True
    return leaves


def _first(leaves: np.ndarray, number: int) -> np.ndarray:
    """The first exit of [e, B, N], numbered from `number`, at which each image leaves, or the next.

    Returns [B, N].
    """
    first = np.full(leaves.shape[1:], number + len(leaves), np.intp)
    for e in reversed(range(len(leaves))):  # the earliest writes last, so it wins
        np.copyto(first, number + e, where=leaves[e])
    return first


def _cells(problem: _Problem, chosen: np.ndarray, *exits: int) -> np.ndarray:
    """Flat index of (budget, level, ...) for flat indices of [B, N]; levels count from 1."""
    num_images = problem.level.shape[1]
    cell = chosen // num_images
    image = chosen - cell * num_images
    for e in exits:
        cell = cell * len(problem.grids[e]) + (problem.level[e].take(image) - 1)
    return cell


def _up_to(histogram: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... G values along the last axis: [..., G] -> [..., G + 1]."""
    empty = np.zeros((*histogram.shape[:-1], 1))
    return np.concatenate([empty, np.cumsum(histogram, axis=-1)], axis=-1)


def _beyond(histogram: np.ndarray) -> np.ndarray:
    """Sums of all but the first 0, 1, ... G rows: [B, G, H] -> [B, G + 1, H]."""
    empty = np.zeros((len(histogram), 1, histogram.shape[2]))
    return np.concatenate([np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1], empty], axis=1)


def _checked_budgets(budgets: Sequence[float] | np.ndarray, costs: np.ndarray) -> np.ndarray:
    budgets = np.asarray(budgets, np.float64)
    if budgets.ndim != 1 or budgets.size == 0 or np.isnan(budgets).any():
        raise ValueError(f"budgets {budgets}; expected a sequence of mean costs per image")
    if budgets.min() < costs[0] * (1 - _ROUNDING):
        raise ValueError(
            f"a budget of {budgets.min():g} per image is less than the first exit alone costs, "
            f"{costs[0]:g}: raise the budget"
        )
    return budgets
