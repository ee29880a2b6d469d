"""Operating points: values of the budget curve, chosen by validation images only."""

import dataclasses
import json

import numpy as np
import pytest
from sample_logits import COSTS, split

from imta_jax.evaluation import (
    OperatingPoint,
    best_within_budget,
    budget_curve,
    cheapest_within_tolerance,
    operating_points,
    pareto_front,
    read_budget_curve,
    rows_with_costs,
    save_predictions,
)


def point(budget: float, validation_top1: float, top1: float = 50.0) -> OperatingPoint:
    return OperatingPoint(budget, (0.5, -1e8), (0.4, 0.6), validation_top1, top1)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return budget_curve(split(0), split(1), COSTS).rows("mean_macs")


def test_points_have_the_values_of_their_rows(rows):
    points = operating_points(rows, COSTS[-1])
    assert len(points) == len(rows)
    for actual, row in zip(points, rows, strict=True):
        assert actual.thresholds == tuple(row["thresholds"])
        assert actual.mean_cost == row["mean_macs"]
        assert actual.cost_share == row["mean_macs"] / 70
        assert actual.budget == row["validation_mean_macs"] / 70
        assert actual.budget == pytest.approx(np.dot(actual.validation_exit_fractions, COSTS) / 70)
        assert (actual.validation_top1, actual.top1) == (row["validation_top1"], row["top1"])
        assert actual.exit_fractions == tuple(row["exit_fractions"])


def test_rows_of_older_results_give_points_without_a_budget(rows):
    keys = ("quota", "thresholds", "mean_macs", "validation_top1", "top1", "exit_fractions")
    older = [{key: row[key] for key in keys} for row in rows]
    for actual, expected in zip(
        operating_points(older, 70), operating_points(rows, 70), strict=True
    ):
        assert actual == dataclasses.replace(expected, budget=None, validation_exit_fractions=None)


@pytest.mark.parametrize("older", [False, True])
def test_budget_curve_is_read_from_current_and_older_results(tmp_path, rows, older):
    added = {"validation_mean_macs", "validation_exit_fractions"}
    written = [{k: v for k, v in row.items() if not (older and k in added)} for row in rows]
    exits = [{"macs": int(macs)} for macs in COSTS]
    others = {name: {"name": "x"} for name in ("dataset", "phases", "environment")}
    results = {**others, "budget_curve": written, "exits": exits}
    (tmp_path / "results.json").write_text(json.dumps(results))
    if older:
        for seed, name in enumerate(("validation", "test")):
            save_predictions(tmp_path / "evaluation" / f"logits_{name}.npz", split(seed))
    assert read_budget_curve(tmp_path) == rows


def test_budget_curve_of_a_run_without_results_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json.*--mode=evaluate"):
        read_budget_curve(tmp_path)


def test_rows_with_other_costs_equal_a_sweep_with_those_costs(rows):
    exit_ms = np.array([0.5, 0.8, 1.7, 2.0])
    actual = rows_with_costs(rows, exit_ms, "mean_ms")
    expected = budget_curve(split(0), split(1), exit_ms).rows("mean_ms")
    assert [list(row) for row in actual] == [list(row) for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        for key, value in expected_row.items():
            assert row[key] == pytest.approx(value, rel=1e-12)


def test_best_point_ignores_test_images(rows):
    points = operating_points(rows, 70)
    budget = float(np.median([p.budget for p in points]))
    chosen = best_within_budget(points, budget)
    affordable = [p for p in points if p.budget <= budget]
    assert chosen in affordable
    assert chosen.validation_top1 == max(p.validation_top1 for p in affordable)
    misleading = [dataclasses.replace(p, top1=100 - p.top1, mean_cost=0.0) for p in points]
    assert best_within_budget(misleading, budget).thresholds == chosen.thresholds


def test_best_point_is_the_cheapest_of_equally_accurate_points():
    points = [point(0.7, 80.0), point(0.4, 80.0), point(0.5, 80.0)]
    assert best_within_budget(points, 1.0) is points[1]


def test_budget_below_all_points_raises_with_the_available_budgets():
    with pytest.raises(ValueError, match=r"budget=0\.1 .*0\.400, 0\.700"):
        best_within_budget([point(0.7, 80.0), point(0.4, 70.0)], 0.1)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, 70.0, float("nan")])
def test_budget_that_is_no_fraction_raises(budget):
    with pytest.raises(ValueError, match=rf"budget={budget:g}; expected"):
        best_within_budget([point(0.4, 70.0)], budget)


def test_pareto_front_drops_points_that_cost_more_and_are_no_better():
    cheap, worse, costly = point(0.4, 70.0), point(0.6, 70.0, top1=90.0), point(0.8, 80.0)
    assert pareto_front([costly, worse, cheap]) == (cheap, costly)


def test_cheapest_point_within_tolerance_is_the_first_that_qualifies():
    points = [point(0.3, 70.0), point(0.5, 79.6), point(0.8, 80.0)]
    assert cheapest_within_tolerance(points, 80.0, 0.5) is points[1]
    assert cheapest_within_tolerance(points, 80.0, 0.0) is points[2]
    assert cheapest_within_tolerance(points, 90.0, 0.5) is points[2]
