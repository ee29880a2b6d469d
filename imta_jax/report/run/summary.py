"""The operating point at the top of the report."""

from imta_jax.evaluation.operating_points import (
    OperatingPoint,
    cheapest_within_tolerance,
    operating_points,
)
from imta_jax.report.run.run_record import RunRecord

TOLERANCE_POINTS = 0.5


def operating_point(run: RunRecord, tolerance_points: float = TOLERANCE_POINTS) -> OperatingPoint:
    """The cheapest point whose validation accuracy is close to the full network's.

    Args:
      run: The run.
      tolerance_points: Allowed loss of validation top-1 against the last exit, in percentage
        points.

    Returns:
      The cheapest point of the budget curve within the tolerance. If there is none, the point with
      the best validation top-1.
    """
    rows = run.budget_curve.to_dict("records")
    points = operating_points(rows, run.full_macs)
    return cheapest_within_tolerance(points, full_validation_top1(run), tolerance_points)


def full_validation_top1(run: RunRecord) -> float:
    """Validation top-1 of the last exit in percent."""
    return float(run.exits["validation_top1"].iloc[-1])
