"""The comparison of threshold methods: consistency of the curves and invalid input."""

import numpy as np
import pytest
from sample_logits import COSTS, measure, overconfident_split

from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.methods.comparison import MethodCurve, compare_methods
from imta_jax.evaluation.methods.comparison_record import (
    comparison_record,
    comparison_text,
    display_name,
)
from imta_jax.evaluation.methods.risk_control import GUARANTEES
from imta_jax.evaluation.methods.temperature import scaled_confidence
from imta_jax.evaluation.predictions import predicted

BUDGETS = (0.2, 0.4, 0.6, 1.0)
FITTED = ["ensemble", "gate"]
METHODS = ["sweep", "envelope", "optimised", "temperature", *FITTED, "patience", *GUARANTEES]


@pytest.fixture(scope="module")
def curves() -> dict[str, MethodCurve]:
    return compare_methods(overconfident_split(0), overconfident_split(1), COSTS, BUDGETS)


def test_every_image_takes_one_exit(curves):
    assert list(curves) == METHODS
    for curve in curves.values():
        np.testing.assert_allclose(curve.exit_fractions.sum(axis=1), 1)
        np.testing.assert_allclose(curve.exit_fractions @ COSTS, curve.mean_cost)


def test_intervals_contain_the_accuracy(curves):
    for curve in curves.values():
        low, high = curve.accuracy_interval.T
        assert ((low <= curve.accuracy) & (curve.accuracy <= high)).all()
        assert (curve.gain_interval[:, 0] <= curve.gain_interval[:, 1]).all()


def test_validation_cost_is_within_the_budget(curves):
    for name in ("sweep", "envelope", "temperature", "optimised", *FITTED):
        assert [s["budget"] for s in curves[name].settings] == list(BUDGETS)
        assert (curves[name].validation_cost <= 70 * np.array(BUDGETS) * (1 + 1e-9)).all()


def test_optimized_beats_frontier_beats_sweep_on_validation_images(curves):
    optimized, frontier, sweep = (
        curves[name].validation_accuracy for name in ("optimised", "envelope", "sweep")
    )
    assert (optimized >= frontier).all()
    assert (frontier >= sweep).all()


def test_thresholds_of_a_point_give_its_accuracy_and_cost(curves):
    test = overconfident_split(1)
    for name, curve in curves.items():
        if curve.thresholds is None:
            continue
        temperature = np.ones(4) if curve.temperatures is None else curve.temperatures
        correct = predicted(test.logits) == test.labels
        outcomes = Outcomes(scaled_confidence(test.logits, temperature), correct)
        num_correct, cost = measure(outcomes, curve.thresholds, COSTS)
        np.testing.assert_allclose(num_correct / 6, curve.accuracy, err_msg=name)
        np.testing.assert_allclose(cost, curve.mean_cost, err_msg=name)


def test_sweep_has_no_gain_over_itself(curves):
    np.testing.assert_allclose(curves["sweep"].gain, 0, atol=1e-9)
    np.testing.assert_allclose(curves["sweep"].gain_interval, 0, atol=1e-4)


def test_limits_of_the_cost_have_no_gain(curves):
    for name, curve in curves.items():
        if name == "ensemble":  # It has its own predictions.
            continue
        limits = np.isin(curve.validation_cost, COSTS[[0, -1]])
        np.testing.assert_allclose(curve.gain[limits], 0, atol=1e-4)


def test_costs_of_fitted_methods_include_their_own_multiply_adds(curves):
    class Costs:
        macs = 1000 * COSTS

    paid = compare_methods(overconfident_split(0), overconfident_split(1), Costs, BUDGETS)
    free = compare_methods(overconfident_split(0), overconfident_split(1), Costs.macs, BUDGETS)
    own = {"ensemble": 7 * np.array([1, 3, 6, 10]), "gate": 32 * np.array([1, 2, 3, 3])}
    for name in FITTED:
        actual = paid[name].mean_cost - paid[name].exit_fractions @ Costs.macs
        np.testing.assert_allclose(actual, paid[name].exit_fractions @ own[name], rtol=1e-6)
        np.testing.assert_allclose(free[name].exit_fractions @ Costs.macs, free[name].mean_cost)
    # One budget is the cost of the whole network, which a gated network exceeds.
    assert paid["gate"].mean_cost[-1] < Costs.macs[-1]


def test_fitted_methods_use_all_validation_images(curves):
    validation = overconfident_split(0)
    for half in (0, 1):
        changed = validation.logits.copy()
        changed[:, half::2] *= np.array([0.2, 1, 2, 1], np.float32)[:, None, None]
        other = compare_methods(
            (changed, validation.labels), overconfident_split(1), COSTS, BUDGETS
        )
        for name in FITTED:
            assert not np.array_equal(other[name].exit_fractions, curves[name].exit_fractions)


def test_test_images_do_not_influence_thresholds(curves):
    other = compare_methods(overconfident_split(0), overconfident_split(2, 300), COSTS, BUDGETS)
    for name, curve in curves.items():
        np.testing.assert_array_equal(other[name].thresholds, curve.thresholds)
        np.testing.assert_array_equal(other[name].validation_cost, curve.validation_cost)


@pytest.mark.parametrize("num_exits", [1, 2])
def test_networks_with_few_exits_are_compared(num_exits):
    pair = (overconfident_split(seed, 40, num_exits) for seed in (0, 1))
    curves = compare_methods(*pair, COSTS[:num_exits], [1.0])
    assert all(np.isfinite(curve.gain_interval).all() for curve in curves.values())


def test_table_has_a_row_per_point_with_the_names_of_the_command_line():
    record = comparison_record(overconfident_split(0), overconfident_split(1), COSTS, BUDGETS)
    text = comparison_text(record)
    in_table = {line.split()[0] for line in text.splitlines() if "%" in line}
    assert {display_name(method) for method in METHODS} <= in_table
    assert "optimised" not in text
    for row in record["points"]:
        assert row["asked"] in text
        assert f"{row['top1']:.2f}" in text


@pytest.mark.parametrize(
    ("test", "budgets", "message"),
    [
        (overconfident_split(1), [0.1], r"budgets=\[0\.1\].*0\.1429"),
        (overconfident_split(1), [30], r"budgets=\[30"),
        (overconfident_split(1, num_exits=3), [0.5], r"\(4, 600, 7\).*\(3, 600, 7\)"),
        (overconfident_split(1, num_classes=6), [0.5], r"\(4, 600, 7\).*\(4, 600, 6\)"),
    ],
)
def test_splits_and_budgets_that_do_not_fit_raise(test, budgets, message):
    with pytest.raises(ValueError, match=message):
        compare_methods(overconfident_split(0), test, COSTS, budgets)
