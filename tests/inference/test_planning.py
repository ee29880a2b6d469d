"""Plans of early exit: the cheapest by hand, and sound whatever the profile."""

import itertools

import numpy as np
import pytest

from imta_jax.inference.engine.engine import Segment
from imta_jax.inference.engine.planning import BatchSizes, all_segments, best_plan, reach_of
from imta_jax.inference.engine.profile import StageProfile

SIZES = (1, 4, 8)


def profile_of(stage_ms, hand_over_ms):
    return StageProfile(
        "net", "made up", {}, 1, SIZES, np.asarray(stage_ms), np.asarray(hand_over_ms)
    )


def batch_sizes_of(profile, limit=8):
    return {
        segment: BatchSizes(SIZES, profile.segment_ms(segment), limit)
        for segment in all_segments(len(profile.stage_ms))
    }


@pytest.mark.parametrize("seed", range(5))
def test_any_number_of_images_is_cut_at_least_cost(seed):
    ms = np.sort(np.random.default_rng(seed).uniform(1, 5, len(SIZES)))
    sizes = BatchSizes(SIZES, ms, 8)
    price = dict(zip(SIZES, ms, strict=True))
    for count in range(1, 9):
        pieces = list(sizes.pieces(count))
        assert sum(pieces) >= count > sum(pieces[:-1])
        least = min(
            sum(price[size] for size in choice)
            for length in range(1, 9)
            for choice in itertools.combinations_with_replacement(SIZES, length)
            if sum(choice) >= count
        )
        assert sum(price[size] for size in pieces) == pytest.approx(least)
        assert sizes.milliseconds(count) == pytest.approx(least)
        assert set(pieces) <= set(sizes.used)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_the_cheapest_of_all_segmentations(seed):
    rng = np.random.default_rng(seed)
    profile = profile_of(rng.uniform(1, 4, (4, 1)) * SIZES, rng.uniform(0, 3, (3, 1)) * SIZES)
    sizes, reach = batch_sizes_of(profile), np.array([1.0, 0.7, 0.5, 0.2])
    costs = {}
    for ends in itertools.product([False, True], repeat=3):
        cuts = [i for i, end in enumerate(ends) if end]
        segments = tuple(
            Segment(a, b) for a, b in zip([0, *(c + 1 for c in cuts)], [*cuts, 3], strict=True)
        )
        costs[segments] = sum(sizes[s].milliseconds(8 * reach[s.first]) for s in segments)
    plan = best_plan(profile, 8, reach, sizes)
    assert plan.expected_ms == pytest.approx(min(costs.values()))
    assert costs[plan.segments] == pytest.approx(min(costs.values()))


def test_stopping_where_nobody_leaves_is_passed_over():
    profile = profile_of(np.ones((3, 1)) * SIZES, np.full((2, 3), 0.2))
    reach = reach_of(np.array([0.0, 0.8, 0.2]), np.array([True, True, True]))
    np.testing.assert_allclose(reach, [1, 1, 0.2])
    plan = best_plan(profile, 8, reach, batch_sizes_of(profile))
    assert plan.segments == (Segment(0, 1), Segment(2, 2))


def test_without_fractions_images_leave_evenly_where_they_can():
    np.testing.assert_allclose(
        reach_of(None, np.array([True, False, True, True])), [1, 2 / 3, 2 / 3, 1 / 3]
    )
