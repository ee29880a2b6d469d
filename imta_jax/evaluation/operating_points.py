"""Operating points: one set of exit thresholds each, with its measured cost and accuracy.

An operating point is a setting in which a network can be deployed. Points are made from the rows of
a budget curve and chosen on validation images only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imta_jax.errors import InputError


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of a network with early exits, and their measurements on both splits.

    Attributes:
      budget: mean cost per validation image as a fraction of the last exit's cost, above 0 and at
        most 1. None if the results file does not record it.
      thresholds: confidence per exit at which images leave.
      validation_exit_fractions: fraction of the validation images that leave at each exit. None if
        the results file does not record it.
      validation_top1: top-1 accuracy on the validation images, percent.
      top1: top-1 accuracy on the test images, percent.
      mean_cost: mean cost per test image in the unit of the budget curve, e.g. multiply-adds.
        None in an exported network.
      cost_share: `mean_cost` as a fraction of the last exit's cost. None in an exported network.
      exit_fractions: fraction of the test images that leave at each exit. None in an exported
        network.
    """

    budget: float | None
    thresholds: tuple[float, ...]
    validation_exit_fractions: tuple[float, ...] | None
    validation_top1: float
    top1: float
    mean_cost: float | None = None
    cost_share: float | None = None
    exit_fractions: tuple[float, ...] | None = None


def operating_points(
    rows: Sequence[Mapping[str, Any]], full_cost: float | np.number, *, cost_name: str = "mean_macs"
) -> tuple[OperatingPoint, ...]:
    """One operating point per row of a budget curve, in the order of the rows.

    Args:
      rows: rows of `BudgetCurve.rows`, or `budget_curve` of a `results.json`. Files written before
        rows had `validation_*` costs and exit fractions are accepted.
      full_cost: cost of the last exit, in the unit of the rows.
      cost_name: key of the mean cost in the rows.

    Returns:
      The points.
    """
    return tuple(_point(row, float(full_cost), cost_name) for row in rows)


def best_within_budget(points: Sequence[OperatingPoint], budget: float) -> OperatingPoint:
    """The point with the best validation accuracy among those within a budget.

    Among equally accurate points the cheapest is returned.

    Args:
      points: operating points with a `budget`, in any order.
      budget: mean cost per validation image as a fraction of the last exit's cost, above 0 and at
        most 1.

    Returns:
      The point.

    Raises:
      ValueError: the budget is out of range, or every point exceeds it.
    """
    if not 0 < budget <= 1:
        raise InputError(
            f"budget={budget:g}; expected a fraction of the last exit's cost, above 0 and at most "
            "1, e.g. 0.5"
        )
    best = _most_accurate(points, [_budget(point) for point in points], budget)
    if best is None:
        available = ", ".join(f"{point.budget:.3f}" for point in pareto_front(points))
        raise InputError(
            f"no operating point has budget={budget:g} or less; available budgets: {available}. "
            "Raise the budget or add smaller config.evaluation.quotas"
        )
    return best


def best_within_ms(
    points: Sequence[OperatingPoint], exit_ms: Sequence[float] | np.ndarray, budget_ms: float
) -> OperatingPoint:
    """Like `best_within_budget`, for a budget in milliseconds.

    Args:
      points: operating points with `validation_exit_fractions`, in any order.
      exit_ms: [E] milliseconds per image up to each exit, such as `StageProfile.exit_ms`.
      budget_ms: mean milliseconds per image.

    Returns:
      The point.

    Raises:
      ValueError: every point takes longer; names the shortest time.
    """
    costs = [
        sum(f * ms for f, ms in zip(point.validation_exit_fractions or (), exit_ms, strict=True))
        for point in points
    ]
    best = _most_accurate(points, costs, budget_ms)
    if best is None:
        raise InputError(
            f"no operating point takes budget_ms={budget_ms:g} or less per image on this machine; "
            f"the fastest takes {min(costs):.3g} ms"
        )
    return best


def cheapest_within_tolerance(
    points: Sequence[OperatingPoint], reference_top1: float, tolerance_points: float
) -> OperatingPoint:
    """The first point whose validation accuracy is close to a reference accuracy.

    Args:
      points: operating points by rising cost.
      reference_top1: usually the last exit's validation top-1, percent.
      tolerance_points: allowed loss of validation top-1, in percentage points.

    Returns:
      The first point within the tolerance. If there is none, the point with the best validation
      top-1.
    """
    least = reference_top1 - tolerance_points
    within = (point for point in points if point.validation_top1 >= least)
    return next(within, max(points, key=lambda point: point.validation_top1))


def pareto_front(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """The points that no point of equal or lower budget matches in validation accuracy.

    Args:
      points: operating points with a `budget`, in any order.

    Returns:
      The remaining points, by rising budget and rising validation accuracy.
    """
    front: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (_budget(point), -point.validation_top1)):
        if not front or point.validation_top1 > front[-1].validation_top1:
            front.append(point)
    return tuple(front)


def _most_accurate(
    points: Sequence[OperatingPoint], costs: Sequence[float], limit: float
) -> OperatingPoint | None:
    """The most accurate point that costs at most `limit`, and the cheapest of these; or None."""
    affordable = [
        (point.validation_top1, -cost, point)
        for point, cost in zip(points, costs, strict=True)
        if cost <= limit
    ]
    return max(affordable, key=lambda entry: entry[:2])[2] if affordable else None


def _budget(point: OperatingPoint) -> float:
    if point.budget is None:
        raise InputError(
            "operating point with budget=None; read the rows of older results with "
            "read_budget_curve, which completes them"
        )
    return point.budget


def _point(row: Mapping[str, Any], full_cost: float, cost_name: str) -> OperatingPoint:
    validation_cost = row.get(f"validation_{cost_name}")
    validation_fractions = row.get("validation_exit_fractions")
    return OperatingPoint(
        budget=None if validation_cost is None else float(validation_cost) / full_cost,
        thresholds=tuple(row["thresholds"]),
        validation_exit_fractions=(
            None if validation_fractions is None else tuple(validation_fractions)
        ),
        validation_top1=float(row["validation_top1"]),
        top1=float(row["top1"]),
        mean_cost=float(row[cost_name]),
        cost_share=float(row[cost_name]) / full_cost,
        exit_fractions=tuple(row["exit_fractions"]),
    )
