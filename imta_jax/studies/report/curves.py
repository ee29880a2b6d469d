"""Curves of a study over its seeds: budget curves at common costs, validation over epochs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imta_jax.studies.report.record import Arm, StudyRecord

GRID_POINTS = 60


def curve_at(row: Mapping[str, Any], costs: np.ndarray, key: str = "top1") -> np.ndarray:
    """A run's budget curve at given mean costs, between its points by straight lines.

    Budgets between two points are met by treating some images by the one's thresholds and the
    rest by the other's, so the line is within reach.

    Args:
      row: a row that is done.
      costs: [n] mean multiply-adds per test image.
      key: "top1" or "validation_top1".

    Returns:
      [n], percent; NaN outside of the curve's costs.
    """
    points = {point["mean_macs"]: point[key] for point in row["budget_curve"]}
    known = sorted(points)
    accuracy = np.interp(costs, known, [points[cost] for cost in known])
    # Rounding of a cost must not cost the curve its ends.
    slack = 1e-9 * known[-1]
    inside = (np.asarray(costs) >= known[0] - slack) & (np.asarray(costs) <= known[-1] + slack)
    return np.where(inside, accuracy, np.nan)


def common_costs(rows: list[Mapping[str, Any]]) -> np.ndarray:
    """[n] mean multiply-adds, rising, that the budget curves of all these rows reach; maybe [0]."""
    reached = [[point["mean_macs"] for point in row["budget_curve"]] for row in rows]
    low, high = max(map(min, reached), default=0.0), min(map(max, reached), default=0.0)
    return np.linspace(low, high, GRID_POINTS) if low < high else np.zeros(0)


def arm_curves(study: StudyRecord, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """An arm's budget curves: costs [n] (multiply-adds) and test top-1 [seeds, n] (percent)."""
    rows = list(study.done(arm).values())
    costs = common_costs(rows)
    return costs, np.array([curve_at(row, costs) for row in rows]).reshape(len(rows), len(costs))


def curve_gains(study: StudyRecord, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """An arm's budget curves minus its baseline's, paired by seed, at costs that both reach.

    Returns:
      Costs [n] in multiply-adds and differences [common seeds, n] in points; [0] and [0, 0]
      without a baseline, a common seed or a common cost.
    """
    baseline = study.baseline_of(arm)
    own, plain = study.done(arm), study.done(baseline) if baseline else {}
    common = sorted(own.keys() & plain.keys())
    costs = common_costs([rows[seed] for seed in common for rows in (own, plain)])
    if not len(costs):
        return costs, np.zeros((0, 0))
    gains = [curve_at(own[seed], costs) - curve_at(plain[seed], costs) for seed in common]
    return costs, np.array(gains)


def validation_curves(
    study: StudyRecord, arm: Arm, phase: str = "phase_one"
) -> tuple[np.ndarray, np.ndarray]:
    """Validation top-1 over the epochs of a phase, at epochs that all seeds have.

    Returns:
      Epochs [n] from 1 and top-1 [seeds, n, exits] in percent; [0] and [0, 0, 0] of none.
    """
    by_epoch = [
        {point["epoch"]: point["top1"] for point in row["validation_curve"].get(phase) or []}
        for row in study.done(arm).values()
    ]
    epochs = sorted(set.intersection(*map(set, by_epoch))) if by_epoch else []
    if not epochs:
        return np.zeros(0), np.zeros((0, 0, 0))
    return np.array(epochs), np.array([[one[e] for e in epochs] for one in by_epoch], dtype=float)
