"""Cost-aware exits: kept exits have the least cost, and an exit that costs too much is not kept."""

import itertools

import numpy as np
import pytest

from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.exit_selection import _best_exits, exits_never_kept, select_exits


def monotone_outcomes(num_exits=4, count=400, seed=0):
    """Images whose confidence and correctness only rise along the exits."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0, 1, (num_exits, count)).astype(np.float32)
    confidence = np.cumsum(steps, axis=0) / num_exits
    return Outcomes(confidence, confidence + rng.normal(0, 0.1, confidence.shape) > 0.35)


@pytest.mark.parametrize("seed", range(4))
def test_kept_exits_have_the_least_cost_of_all_subsets(seed):
    rng = np.random.default_rng(seed)
    outcomes = monotone_outcomes(seed=seed)
    confident = outcomes.confidence >= 0.4
    confident[-1] = True
    stage_ms, stop_ms, error_ms = rng.uniform(0.5, 2, 4), rng.uniform(0, 0.5, 3), 2.0

    def cost(kept):
        total, remaining, begin = 0.0, np.ones(400, bool), 0
        for j in kept:
            total += remaining.mean() * (stage_ms[begin : j + 1].sum() - stop_ms[begin:j].sum())
            total += error_ms * (remaining & confident[j] & ~outcomes.correct[j]).mean()
            remaining, begin = remaining & ~confident[j], j + 1
        return total

    subsets = [(*early, 3) for n in range(4) for early in itertools.combinations(range(3), n)]
    actual = _best_exits(confident, outcomes.correct, stage_ms, stop_ms, error_ms)
    assert cost(actual) == pytest.approx(min(map(cost, subsets)))


def test_exit_whose_stop_costs_more_than_it_saves_is_never_kept():
    outcomes = monotone_outcomes()
    stage_ms, stop_ms = np.array([1.0, 6.0, 1.0, 1.0]), np.array([0.0, 5.5, 0.0])
    selections = select_exits(outcomes, stage_ms, stop_ms, [0.5, 0.7, 0.9, 1.0])
    assert 1 in exits_never_kept(selections, 4) and 3 not in exits_never_kept(selections, 4)
    for selection in selections:
        assert selection.mean_ms <= selection.budget_ms
        assert np.isinf(selection.thresholds[1])


def test_times_of_another_network_are_rejected():
    with pytest.raises(ValueError, match=r"stage_ms.*3.*4 exits"):
        select_exits(monotone_outcomes(), np.ones(3), np.ones(2), [1.0])
