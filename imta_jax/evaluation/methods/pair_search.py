"""Search for thresholds on a grid under a cost budget, two exits at a time.

With all other thresholds fixed, the accuracy and cost of *every* pair of thresholds of two exits
come from one two-dimensional histogram and its cumulative sums. The best pair within the budget is
therefore exact, and compute can move from one exit to the other, where a search along single
thresholds stops at the budget. All budgets are searched at once.
"""

import itertools
from typing import NamedTuple

import numpy as np

from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Float64, Int, Int32, Num

# Rounds over all pairs. A search usually converges after three or four.
_MAX_ROUNDS = 20


class GridProblem(NamedTuple):
    """Images, costs and budgets on a grid of thresholds per exit.

    An exit's threshold is represented by its number of open levels, from 0 (no image leaves) to G.
    An image leaves at the exit if its level there is at most the number of open levels.

    Attributes:
      grids: per exit, falling thresholds; with the last of them all images leave.
      level: level of each image at each exit, 1..G.
      correct: 0 or 1.
      costs: cumulative cost per exit.
      budgets: rising total costs, over all images.
    """

    grids: list[Float32[np.ndarray, " G"]]
    level: Int32[np.ndarray, "E N"]
    correct: Float64[np.ndarray, "E N"]
    costs: Float64[np.ndarray, " E"]
    budgets: Float64[np.ndarray, " B"]


def search(problem: GridProblem, open_levels: Int[np.ndarray, "B E"]) -> Int[np.ndarray, "B E"]:
    """Improves pairs of exits until none changes.

    Args:
      problem: images, costs and rising budgets.
      open_levels: within each budget.

    Returns:
      Open levels within each budget that are at least as good.
    """
    num_exits = len(problem.grids)
    # The last exit has one level. With two exits it completes the only pair.
    candidates = range(max(num_exits - 1, 2)) if num_exits > 1 else ()
    changed = np.arange(len(open_levels))
    for _ in range(_MAX_ROUNDS):
        before, improved = open_levels, open_levels[changed]
        subproblem = problem._replace(budgets=problem.budgets[changed])
        for pair in itertools.combinations(candidates, 2):
            improved = _best_pair(subproblem, improved, *pair)
        open_levels = open_levels.copy()
        open_levels[changed] = improved
        open_levels = _reuse_smaller_budgets(problem, open_levels)
        changed = np.flatnonzero((open_levels != before).any(axis=1))
        if changed.size == 0:
            break
    return open_levels


def score_of(num_correct: np.ndarray, cost: np.ndarray, max_cost: float) -> np.ndarray:
    """Number of correct predictions; the lower cost decides between equal numbers."""
    return num_correct - 0.5 * cost / max_cost


def _reuse_smaller_budgets(
    problem: GridProblem, open_levels: Int[np.ndarray, "B E"]
) -> Int[np.ndarray, "B E"]:
    """Replaces each budget's thresholds by those of a smaller budget that score higher."""
    exits = _first_exit(_leaving(problem, open_levels), 0)
    num_correct = problem.correct[exits, np.arange(exits.shape[1])[None, :]].sum(axis=1)
    cost = problem.costs.take(exits).sum(axis=1)
    score = score_of(num_correct, cost, problem.costs[-1] * exits.shape[1])
    improves = np.r_[True, score[1:] > np.maximum.accumulate(score)[:-1]]
    return open_levels[np.maximum.accumulate(np.where(improves, np.arange(len(score)), 0))]


def _best_pair(
    problem: GridProblem, open_levels: Int[np.ndarray, "B E"], i: int, j: int
) -> Int[np.ndarray, "B E"]:
    """The best levels of exits i < j for every budget, with all other exits fixed."""
    num_correct, cost = _pair_tables(problem, open_levels, i, j)
    score = score_of(num_correct, cost, problem.costs[-1] * problem.level.shape[1])
    score = np.where(cost <= problem.budgets[:, None, None], score, -np.inf)
    budgets = np.arange(len(open_levels))
    flat = score.reshape(len(open_levels), -1)
    best = flat.argmax(axis=1)
    better = flat[budgets, best] > score[budgets, open_levels[:, i], open_levels[:, j]]
    best_levels = np.stack(np.unravel_index(best, score.shape[1:]), axis=1)
    improved = open_levels.copy()
    improved[:, [i, j]] = np.where(better[:, None], best_levels, open_levels[:, [i, j]])
    return improved


def _pair_tables(
    problem: GridProblem, open_levels: Int[np.ndarray, "B E"], i: int, j: int
) -> tuple[Float64[np.ndarray, "B Gi Gj"], Float64[np.ndarray, "B Gi Gj"]]:
    """Number of correct predictions and total cost at every pair of open levels, 0..G each.

    An image that reaches exit i leaves at i, at an exit between i and j, at j, or after j. The
    total is the sum over images that pass both exits, plus the change for images that leave at i
    (by their level at i), plus the change for images that pass i and leave at j (by both levels).
    """
    leaves = _leaving(problem, open_levels)
    between = _first_exit(leaves[i + 1 : j], i + 1)  # j if at none of them
    after = _first_exit(leaves[j + 1 :], j + 1) if j + 1 < len(leaves) else j
    passing = np.where(between < j, between, after)
    before = _first_exit(leaves[:i], 0)  # i if at none of them
    final = np.where(before < i, before, passing)  # [B, N]: exits of images that pass both
    images = np.arange(final.shape[1])
    correct = problem.correct.ravel().take(final * len(images) + images)
    cost = problem.costs.take(final)
    at_i = np.flatnonzero(before == i)
    at_both = np.flatnonzero((before == i) & (between == j))
    cells_i, cells_both = _cells(problem, at_i, i), _cells(problem, at_both, i, j)
    tables = []
    for final_value, value_i, value_j in (
        (correct, problem.correct[i], problem.correct[j]),
        (cost, problem.costs[[i]], problem.costs[[j]]),
    ):
        shape = (len(open_levels), *(len(problem.grids[e]) for e in (i, j)))
        by_i = np.bincount(cells_i, (value_i - final_value).take(at_i), np.prod(shape[:2]))
        by_both = np.bincount(cells_both, (value_j - final_value).take(at_both), np.prod(shape))
        tables.append(
            final_value.sum(axis=1)[:, None, None]
            + _sums_of_first(by_i.reshape(shape[:2]))[:, :, None]
            + _sums_after_first(_sums_of_first(by_both.reshape(shape)))
        )
    return tables[0], tables[1]


def _leaving(
    problem: GridProblem, open_levels: Int[np.ndarray, "B E"]
) -> Bool[np.ndarray, "E B N"]:
    """Whether an image that reaches an exit leaves there; always true at the last exit."""
    leaves = problem.level[:, None, :] <= open_levels.T[:, :, None]
    leaves[-1] = True
    return leaves


def _first_exit(leaves: Bool[np.ndarray, "e B N"], offset: int) -> Int[np.ndarray, "B N"]:
    """First exit where each image leaves, otherwise the exit after; exits count from `offset`."""
    first = np.full(leaves.shape[1:], offset + len(leaves), np.intp)
    for e in reversed(range(len(leaves))):  # The earliest is written last, so it takes precedence.
        np.copyto(first, offset + e, where=leaves[e])
    return first


def _cells(
    problem: GridProblem, indices: Int[np.ndarray, " C"], *exits: int
) -> Int[np.ndarray, " C"]:
    """Flat index of (budget, level - 1, ...) for flat indices of [B, N]."""
    num_images = problem.level.shape[1]
    cell = indices // num_images
    image = indices - cell * num_images
    for e in exits:
        cell = cell * len(problem.grids[e]) + (problem.level[e].take(image) - 1)
    return cell


def _sums_of_first(histogram: Num[np.ndarray, "*rest G"]) -> Float[np.ndarray, "*rest G+1"]:
    """Sums of the first 0, 1, ... G values along the last axis."""
    zeros = np.zeros((*histogram.shape[:-1], 1))
    return np.concatenate([zeros, np.cumsum(histogram, axis=-1)], axis=-1)


def _sums_after_first(histogram: Float[np.ndarray, "B G H"]) -> Float[np.ndarray, "B G+1 H"]:
    """Sums of all but the first 0, 1, ... G values along the middle axis."""
    zeros = np.zeros((len(histogram), 1, histogram.shape[2]))
    return np.concatenate([np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1], zeros], axis=1)
