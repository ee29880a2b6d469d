"""The budget sweep and decisions: reference numbers, properties, invalid input."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import chex
import numpy as np
import pytest
from sample_logits import COSTS, split

from imta_jax.evaluation import budget, predictions

GOLDEN = Path(__file__).parents[1] / "data" / "thresholds.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def curve() -> budget.BudgetCurve:
    return budget.budget_curve(split(0), split(1), COSTS)


def golden_outcomes(golden: dict[str, np.ndarray], name: str) -> budget.Outcomes:
    probabilities = golden[f"{name}_probs"]
    correct = probabilities.argmax(axis=-1) == golden[f"{name}_targets"][None, :]
    return budget.Outcomes(probabilities.max(axis=-1), correct)


def test_sweep_matches_reference(golden):
    actual = budget.curve_of_outcomes(
        golden_outcomes(golden, "val"), golden_outcomes(golden, "test"), golden["flops"]
    )
    np.testing.assert_array_equal(actual.quota, golden["p_over_20"] / 20)
    np.testing.assert_array_equal(actual.thresholds, golden["T"])
    np.testing.assert_allclose(actual.validation_accuracy, golden["val_acc"], rtol=1e-12)
    np.testing.assert_allclose(actual.accuracy, golden["test_acc"], rtol=1e-12)
    np.testing.assert_allclose(actual.validation_cost, golden["val_flops"], rtol=1e-5)
    np.testing.assert_allclose(actual.mean_cost, golden["test_flops"], rtol=1e-5)
    np.testing.assert_array_equal(
        np.rint(400 * actual.validation_exit_fractions), golden["val_exit_counts"]
    )
    np.testing.assert_array_equal(np.rint(600 * actual.exit_fractions), golden["test_exit_counts"])


def test_every_image_leaves_exactly_once(curve):
    for fractions in (curve.exit_fractions, curve.validation_exit_fractions):
        counts = np.rint(500 * fractions)
        np.testing.assert_allclose(500 * fractions, counts, atol=1e-9)
        np.testing.assert_array_equal(counts.sum(axis=1), 500)
    np.testing.assert_allclose(curve.mean_cost, curve.exit_fractions @ COSTS)


def test_expected_cost_rises_with_quota(curve):
    assert (np.diff(curve.validation_cost) > 0).all()
    assert curve.mean_cost[-1] > curve.mean_cost[0]
    assert ((COSTS[0] <= curve.mean_cost) & (curve.mean_cost <= COSTS[-1])).all()


def test_curve_accepts_pairs_and_costs_with_macs(curve):
    actual = budget.budget_curve(
        tuple(split(0)), tuple(split(1)), SimpleNamespace(macs=tuple(int(c) for c in COSTS))
    )
    chex.assert_trees_all_equal(dataclasses.asdict(actual), dataclasses.asdict(curve))


def test_test_images_do_not_influence_thresholds(curve):
    other = budget.budget_curve(split(0), split(7), COSTS)
    np.testing.assert_array_equal(other.thresholds, curve.thresholds)
    np.testing.assert_array_equal(other.validation_accuracy, curve.validation_accuracy)
    assert (other.accuracy != curve.accuracy).any()


def test_curve_equals_the_mean_of_decisions(curve):
    logits, labels = split(1)
    confidence, classes = predictions.confidence(logits), predictions.predicted(logits)
    for b in (0, 19, 39):
        decided = budget.decisions(confidence, classes, COSTS, curve.thresholds[b])
        assert curve.accuracy[b] == pytest.approx(100 * (decided.prediction == labels).mean())
        assert curve.mean_cost[b] == pytest.approx(decided.cost.mean())
        np.testing.assert_array_equal(decided.confidence, confidence[decided.exit, np.arange(500)])


def test_permuted_images_get_permuted_decisions(curve):
    logits = split(1).logits
    confidence, classes = predictions.confidence(logits), predictions.predicted(logits)
    order = np.random.default_rng(0).permutation(500)
    plain = budget.decisions(confidence, classes, COSTS, curve.thresholds[20])
    permuted = budget.decisions(
        confidence[:, order], classes[:, order], COSTS, curve.thresholds[20]
    )
    expected = budget.Decisions(*(values[order] for values in plain))
    chex.assert_trees_all_equal(permuted, expected)


@pytest.mark.parametrize(
    ("test", "costs", "message"),
    [
        (split(1, num_exits=3), COSTS, r"4 exits.*\b3\b"),
        (split(1, num_classes=5), COSTS, r"7 classes.*\b5\b"),
        (split(1), COSTS[:3], r"costs.*\(3,\).*4 exits"),
        (split(1), [10, 15, 12, 20], r"costs=\[10 15 12 20\]"),
        (split(1), [0, 1, 2, 3], r"costs=\[0 1 2 3\]"),
        (split(1), [1, 2, np.nan, 3], r"costs=.*nan"),
    ],
)
def test_predictions_or_costs_of_another_network_raise(test, costs, message):
    with pytest.raises(ValueError, match=message):
        budget.budget_curve(split(0), test, costs)


@pytest.mark.parametrize("quotas", [[], 0.5, [0.5, -1.0]])
def test_invalid_quotas_raise(quotas):
    with pytest.raises(ValueError, match=r"(quotas|q)="):
        budget.budget_curve(split(0), split(1), COSTS, quotas=quotas)


def test_outcomes_of_another_type_or_shape_raise():
    fine = budget.outcomes(split(0))
    for correct in (fine.correct[:, :-1], fine.correct.astype(int)):
        with pytest.raises(
            ValueError, match=rf"correct.*{correct.dtype}.*{re.escape(str(correct.shape))}"
        ):
            budget.curve_of_outcomes(fine, budget.Outcomes(fine.confidence, correct), COSTS)


def test_decisions_from_arrays_of_different_shapes_raise():
    confidence = budget.outcomes(split(0)).confidence
    with pytest.raises(ValueError, match=r"confidence.*\(4, 500\).*predictions.*\(4, 3\)"):
        budget.decisions(confidence, np.zeros((4, 3), int), COSTS, np.full(4, -1e8))
