"""Curves of a study over its seeds: budget curves at common costs, validation over epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imta_jax.studies.report.study_record import StudyRecord, VariantRecord

GRID_POINTS = 60


def curve_at(row: Mapping[str, Any], costs: np.ndarray, key: str = "top1") -> np.ndarray:
    """Interpolates the budget curve of a run linearly at given mean costs.

    A cost between two points is reached by applying the thresholds of one point to some images
    and those of the other point to the rest, which gives the interpolated accuracy on average.

    Args:
      row: row of a finished run.
      costs: mean multiply-adds per test image, [n].
      key: "top1" or "validation_top1".

    Returns:
      Accuracies in percent, [n]; NaN outside the costs of the curve.
    """
    points = {point["mean_macs"]: point[key] for point in row["budget_curve"]}
    known = sorted(points)
    accuracy = np.interp(costs, known, [points[cost] for cost in known])
    # Allow rounding errors at the ends of the curve.
    tolerance = 1e-9 * known[-1]
    costs = np.asarray(costs)
    inside = (costs >= known[0] - tolerance) & (costs <= known[-1] + tolerance)
    return np.where(inside, accuracy, np.nan)


def common_costs(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Rising mean multiply-adds [n] inside the budget curves of all rows; [0] if there are none."""
    reached = [[point["mean_macs"] for point in row["budget_curve"]] for row in rows]
    low, high = max(map(min, reached), default=0.0), min(map(max, reached), default=0.0)
    return np.linspace(low, high, GRID_POINTS) if low < high else np.zeros(0)


def variant_curves(study: StudyRecord, variant: VariantRecord) -> tuple[np.ndarray, np.ndarray]:
    """A variant's budget curves: costs [n] in multiply-adds, test top-1 [seeds, n] in percent."""
    rows = list(study.finished(variant).values())
    costs = common_costs(rows)
    return costs, np.array([curve_at(row, costs) for row in rows]).reshape(len(rows), len(costs))


def curve_gains(study: StudyRecord, variant: VariantRecord) -> tuple[np.ndarray, np.ndarray]:
    """A variant's budget curves minus those of its baseline, paired by seed, at common costs.

    Returns:
      Costs [n] in multiply-adds and differences [common seeds, n] in points; [0] and [0, 0]
      without a baseline, a common seed or a common cost.
    """
    pairs = study.paired_rows(variant)
    costs = common_costs([row for pair in pairs for row in pair])
    if not len(costs):
        return costs, np.zeros((0, 0))
    return costs, np.array(
        [curve_at(row, costs) - curve_at(baseline, costs) for row, baseline in pairs]
    )


def validation_curves(
    study: StudyRecord, variant: VariantRecord, phase: str = "phase_one"
) -> tuple[np.ndarray, np.ndarray]:
    """Validation top-1 over the epochs of a phase that all seeds have.

    Returns:
      Epochs [n] from 1 and top-1 [seeds, n, exits] in percent; [0] and [0, 0, 0] without any.
    """
    by_epoch = [
        {point["epoch"]: point["top1"] for point in row["validation_curve"].get(phase) or []}
        for row in study.finished(variant).values()
    ]
    epochs = sorted(set.intersection(*map(set, by_epoch))) if by_epoch else []
    if not epochs:
        return np.zeros(0), np.zeros((0, 0, 0))
    return np.array(epochs), np.array(
        [[accuracy[e] for e in epochs] for accuracy in by_epoch], dtype=float
    )
