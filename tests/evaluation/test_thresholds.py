"""Thresholds and exits: recorded reference values, a plain Python implementation, properties."""

import math
from pathlib import Path

import numpy as np
import pytest

from imta_jax.evaluation.thresholds import exit_of, geometric_quota, thresholds_for_quota

GOLDEN = Path(__file__).parents[1] / "data" / "thresholds.npz"
SWEEP = np.arange(1, 41) / 20


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


def tied_confidences(seed: int, num_exits: int = 4, num_images: int = 60) -> np.ndarray:
    """Few distinct values, so that nearly every threshold is tied."""
    draws = np.random.default_rng(seed).integers(1, 12, (num_exits, num_images))
    return (draws / 12).astype(np.float32)


def random_quota(seed: int, num_exits: int = 4, budgets: int = 7) -> np.ndarray:
    fractions = np.random.default_rng(seed).dirichlet(np.full(num_exits, 0.5), budgets)
    return fractions.astype(np.float32)


def python_thresholds(confidence: np.ndarray, quota: np.ndarray) -> list[float]:
    """The rule of the docstring, one image at a time."""
    num_exits, num_images = confidence.shape
    waiting, thresholds = set(range(num_images)), []
    for i in range(num_exits - 1):
        count = math.floor(num_images * quota[i])
        ranked = sorted((float(confidence[i, n]) for n in waiting), reverse=True)
        thresholds.append(ranked[count - 1] if 0 < count <= len(ranked) else 1e8)
        waiting = {n for n in waiting if confidence[i, n] < thresholds[i]}
    return [*thresholds, -1e8]


def python_exits(confidence: np.ndarray, thresholds: np.ndarray) -> list[int]:
    num_exits, num_images = confidence.shape
    return [
        next(i for i in range(num_exits) if confidence[i, n] >= thresholds[i])
        for n in range(num_images)
    ]


def test_geometric_quota_matches_reference(golden):
    quota = geometric_quota(golden["p_over_20"] / 20, 5)
    assert quota.dtype == np.float32
    # Two units in the last place: PyTorch's float32 exponential is not correctly rounded.
    np.testing.assert_allclose(quota, golden["exit_probs"], rtol=2.4e-7)
    np.testing.assert_array_equal(np.floor(400 * quota), golden["quota"])
    np.testing.assert_array_equal(np.floor(400 * golden["exit_probs"]), golden["quota"])


@pytest.mark.parametrize("own_quota", [False, True])
def test_thresholds_match_reference_exactly(golden, own_quota):
    quota = geometric_quota(SWEEP, 5) if own_quota else golden["exit_probs"]
    thresholds = thresholds_for_quota(golden["val_probs"].max(axis=-1), quota)
    assert thresholds.dtype == np.float32
    np.testing.assert_array_equal(thresholds, golden["T"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_exit_counts_match_reference(golden, split):
    exits = exit_of(golden[f"{split}_probs"].max(axis=-1), golden["T"])
    assert exits.dtype == np.int32
    counts = [np.bincount(row, minlength=5) for row in exits]
    np.testing.assert_array_equal(counts, golden[f"{split}_exit_counts"])


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_and_exits_equal_plain_python_with_ties(seed):
    confidence, quotas = tied_confidences(seed), random_quota(seed)
    thresholds = thresholds_for_quota(confidence, quotas)
    exits = exit_of(confidence, thresholds)
    for b, quota in enumerate(quotas):
        expected = np.array(python_thresholds(confidence, quota), np.float32)
        np.testing.assert_array_equal(thresholds[b], expected)
        np.testing.assert_array_equal(exits[b], python_exits(confidence, expected))


def test_several_budgets_equal_single_budgets():
    confidence, quotas = tied_confidences(3), random_quota(3)
    thresholds = thresholds_for_quota(confidence, quotas)
    exits = exit_of(confidence, thresholds)
    for b, quota in enumerate(quotas):
        np.testing.assert_array_equal(thresholds_for_quota(confidence, quota), thresholds[b])
        np.testing.assert_array_equal(exit_of(confidence, thresholds[b]), exits[b])
    np.testing.assert_array_equal(geometric_quota(SWEEP, 4)[7], geometric_quota(SWEEP[7], 4))


def test_thresholds_do_not_depend_on_image_order():
    confidence, quotas = tied_confidences(5), random_quota(5)
    order = np.random.default_rng(0).permutation(confidence.shape[1])
    np.testing.assert_array_equal(
        thresholds_for_quota(confidence[:, order], quotas), thresholds_for_quota(confidence, quotas)
    )


def test_exits_take_their_quota_without_ties():
    ranks = [np.random.default_rng(i).permutation(1000) for i in range(5)]
    confidence = (np.stack(ranks) / 1000).astype(np.float32)
    quotas = geometric_quota(SWEEP, 5)
    exits = exit_of(confidence, thresholds_for_quota(confidence, quotas))
    counts = np.stack([np.bincount(row, minlength=5) for row in exits])
    np.testing.assert_array_equal(counts[:, :-1], np.floor(1000 * quotas)[:, :-1])
    np.testing.assert_array_equal(counts.sum(axis=1), 1000)


def test_exit_takes_more_than_its_quota_with_ties():
    confidence = np.array([[0.9, 0.5, 0.5, 0.5], [0.6, 0.6, 0.6, 0.6]], np.float32)
    thresholds = thresholds_for_quota(confidence, np.array([0.5, 0.5]))
    np.testing.assert_array_equal(thresholds, np.array([0.5, -1e8], np.float32))
    np.testing.assert_array_equal(exit_of(confidence, thresholds), [0, 0, 0, 0])


def test_exit_with_fewer_images_left_than_its_count_takes_none():
    confidence = np.array([[0.5] * 4, [0.6] * 4, [0.7] * 4], np.float32)
    thresholds = thresholds_for_quota(confidence, [0.25, 0.25, 0.5])
    np.testing.assert_array_equal(thresholds, np.array([0.5, 1e8, -1e8], np.float32))


def test_exit_with_zero_quota_takes_none():
    confidence = tied_confidences(1)
    thresholds = thresholds_for_quota(confidence, [0, 0, 0, 1])
    np.testing.assert_array_equal(thresholds, np.array([1e8, 1e8, 1e8, -1e8], np.float32))
    assert (exit_of(confidence, thresholds) == 3).all()


def test_with_the_lowest_thresholds_all_images_leave_at_the_first_exit():
    assert (exit_of(tied_confidences(1), np.full(4, -1e8)) == 0).all()


def test_image_leaves_if_confidence_equals_threshold():
    assert exit_of([[0.5], [0.9]], [0.5, -1e8]).tolist() == [0]


def test_float64_confidence_is_compared_as_float32():
    confidence = np.random.default_rng(0).random((3, 50))
    thresholds = thresholds_for_quota(confidence, [0.3, 0.3, 0.4])
    assert np.bincount(exit_of(confidence, thresholds)).tolist() == [15, 15, 20]


def test_single_exit_takes_all_images():
    assert exit_of([[0.1, 0.9]], thresholds_for_quota([[0.1, 0.9]], [1.0])).tolist() == [0, 0]
    np.testing.assert_array_equal(geometric_quota(0.5, 1), np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("confidence", "quota", "message"),
    [
        ([0.1, 0.2], [1.0], r"confidence.*\(2,\)"),
        (np.zeros((2, 0)), [0.5, 0.5], r"confidence.*\(2, 0\)"),
        ([[0.1, 0.2], [0.3, np.nan]], [0.5, 0.5], "confidence nan.*exit 2, image 1"),
        ([[0.1], [0.2]], [0.3, 0.3, 0.4], r"quota.*\(3,\).*2 exits"),
        ([[0.1], [0.2]], 0.5, r"quota.*\(\)"),
        ([[0.1], [0.2]], [-0.1, 0.5], r"quota=\[-0\.1"),
        ([[0.1], [0.2]], [np.nan, 0.5], r"quota=\[nan"),
        ([[0.1], [0.2]], [0.8, 0.5], r"quota=.*1\.3"),
    ],
)
def test_invalid_confidence_or_quota_raises(confidence, quota, message):
    with pytest.raises(ValueError, match=message):
        thresholds_for_quota(confidence, quota)


@pytest.mark.parametrize("thresholds", [[0.5, 0.5, -1e8], [np.nan, -1e8], [[[0.5, -1e8]]]])
def test_thresholds_of_another_network_raise(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        exit_of([[0.1], [0.2]], thresholds)


@pytest.mark.parametrize("q", [0.0, -1.0, np.nan, np.inf, 1e9, [0.5, 0.0]])
def test_invalid_q_raises(q):
    with pytest.raises(ValueError, match="q="):
        geometric_quota(q, 5)


def test_zero_exits_raise():
    with pytest.raises(ValueError, match="num_exits=0"):
        geometric_quota(1.0, 0)
