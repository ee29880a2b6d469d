"""Plans of early exit: the smallest expected time, and the profile that they are made from."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from imta_jax.inference.engine.planning import (
    BatchSizes,
    PlanTable,
    all_segments,
    best_plan,
    choose_sizes,
    reach_fractions,
)
from imta_jax.inference.engine.profile import StageProfile
from imta_jax.inference.engine.programs import Segment

SIZES = (1, 4, 8)


def profile_of(stage_ms, compaction_ms):
    return StageProfile("net", "device", {}, 1, SIZES, stage_ms, compaction_ms)


def batch_sizes_of(profile, limit=8):
    return {
        segment: BatchSizes(SIZES, profile.segment_ms(segment), limit)
        for segment in all_segments(len(profile.stage_ms))
    }


@pytest.mark.parametrize("seed", range(5))
def test_images_are_divided_into_batch_sizes_of_least_cost(seed):
    ms = np.sort(np.random.default_rng(seed).uniform(1, 5, len(SIZES)))
    sizes = BatchSizes(SIZES, ms, 8)
    cost_of = dict(zip(SIZES, ms, strict=True))
    for count in range(1, 9):
        batches = list(sizes.split(count))
        assert sum(batches) >= count > sum(batches[:-1])
        least = min(
            sum(cost_of[size] for size in choice)
            for length in range(1, 9)
            for choice in itertools.combinations_with_replacement(SIZES, length)
            if sum(choice) >= count
        )
        assert sum(cost_of[size] for size in batches) == pytest.approx(least)
        assert sizes.milliseconds(count) == pytest.approx(least)
        assert set(batches) <= set(sizes.used)


@pytest.mark.parametrize("seed", range(5))
def test_plan_is_the_cheapest_of_all_segmentations(seed):
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


def test_plan_does_not_stop_at_an_exit_that_no_image_takes():
    profile = profile_of(np.ones((3, 1)) * SIZES, np.full((2, 3), 0.2))
    reach = reach_fractions(np.array([0.0, 0.8, 0.2]), np.array([True, True, True]))
    np.testing.assert_allclose(reach, [1, 1, 0.2])
    plan = best_plan(profile, 8, reach, batch_sizes_of(profile))
    assert plan.segments == (Segment(0, 1), Segment(2, 2))


def test_a_single_image_pays_for_the_stages_that_it_reaches():
    profile = profile_of(np.array([[1.0], [2.0], [4.0]]) * SIZES, np.full((2, 3), 0.2))
    table = PlanTable(profile, np.array([1.0, 0.5, 0.25]), 8)
    plan = table.plan_for(1)
    assert plan.segments == (Segment(0, 2),)
    assert plan.expected_ms == pytest.approx(0.8 + 0.5 * 1.8 + 0.25 * 4)
    assert table.batch_sizes[Segment(0, 1)].milliseconds(1) == pytest.approx(2.8)


def test_large_batches_run_in_the_size_that_is_fastest_per_image():
    per_image = np.array([3.0, 1.0, 1.5])
    profile = profile_of(np.outer(np.ones(2), per_image * SIZES), np.full((1, 3), 0.01))
    assert PlanTable(profile, np.array([1.0, 1.0]), 8).fastest_size == 4


@pytest.mark.parametrize("seed", range(3))
def test_left_out_batch_sizes_cost_little_time(seed):
    rng = np.random.default_rng(seed)
    sizes = (1, 2, 4, 8, 16, 32, 64)
    milliseconds = np.asarray(sizes) ** rng.uniform(0.7, 1.1) + rng.uniform(0, 0.3, len(sizes))
    chosen = choose_sizes(sizes, milliseconds, 64)
    assert 0 in chosen and len(chosen) < len(sizes)
    all_ms = BatchSizes(sizes, milliseconds, 64, 0.1).least[1:]
    ms = BatchSizes([sizes[i] for i in chosen], milliseconds[chosen], 64, 0.1).least[1:]
    weights = 1 / np.arange(1, 65)  # late stages run on few images
    assert (ms >= all_ms - 1e-9).all()
    assert np.average(ms / all_ms, weights=weights) <= 1.02


def test_full_network_takes_its_measured_time():
    profile = profile_of(np.ones((3, 1)) * SIZES, np.full((2, 3), 0.2))
    measured = dataclasses.replace(profile, network_ms=np.array([2.0, 3.0, 4.0]))
    full = Segment(0, 2)
    np.testing.assert_array_equal(measured.segment_ms(full), [2.0, 3.0, 4.0])
    assert (profile.segment_ms(full) != measured.segment_ms(full)).any()
    np.testing.assert_array_equal(
        profile.segment_ms(Segment(0, 1)), measured.segment_ms(Segment(0, 1))
    )


def test_profile_is_saved_with_the_keys_of_earlier_versions(tmp_path):
    profile = profile_of(np.ones((3, 1)) * SIZES, np.full((2, 3), 0.2))
    profile.save(tmp_path / "profile.json")
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored.keys() == {
        "network", "device", "versions", "lanes", "sizes", "stage_ms", "hand_over_ms", "network_ms"
    }  # fmt: skip
    del stored["network_ms"]  # as earlier versions
    (tmp_path / "profile.json").write_text(json.dumps(stored))
    loaded = StageProfile.load(tmp_path / "profile.json")
    np.testing.assert_array_equal(loaded.stage_ms, profile.stage_ms)
    np.testing.assert_array_equal(loaded.compaction_ms, profile.compaction_ms)
    assert (loaded.num_workers, loaded.sizes) == (1, SIZES)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage_ms": [[1.0]]}, r"stage_ms.*\[E, 3\].*\(1, 1\)"),
        ({"stage_ms": [[0.0] * 3] * 3}, "stage_ms"),
        ({"network_ms": [1.0]}, r"network_ms.*\[3\].*\(1,\)"),
        ({"network_ms": [1.0, 0.0, 1.0]}, "network_ms"),
        ({"hand_over_ms": [[1.0] * 3]}, r"compaction_ms.*\(2, 3\).*\(1, 3\)"),
    ],
)
def test_profile_with_invalid_times_is_rejected(tmp_path, changes, message):
    path = tmp_path / "profile.json"
    profile_of(np.ones((3, 1)) * SIZES, np.full((2, 3), 0.2)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        StageProfile.load(path)


def test_without_exit_fractions_images_leave_evenly_at_active_exits():
    np.testing.assert_allclose(
        reach_fractions(None, np.array([True, False, True, True])), [1, 2 / 3, 2 / 3, 1 / 3]
    )
