"""The top of the report: the operating point, and the accuracies that it is compared with."""

from dataclasses import dataclass

from imta_jax.evaluation.methods.intervals import wilson_interval
from imta_jax.evaluation.operating_points import (
    OperatingPoint,
    cheapest_within_tolerance,
    operating_points,
)
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import format_count, format_percentage, format_signed

TOLERANCE_POINTS = 0.5
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Card:
    """A number at the top of the report.

    Attributes:
      name: what the number is.
      value: the number as text.
      detail: its interval, its cost, or what it means.
      chosen: whether it is highlighted.
    """

    name: str
    value: str
    detail: str
    chosen: bool = False


def operating_point(run: RunRecord, tolerance_points: float = TOLERANCE_POINTS) -> OperatingPoint:
    """The cheapest point whose validation accuracy is close to the full network's.

    Args:
      run: the run.
      tolerance_points: allowed loss of validation top-1 against the last exit, in percentage
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


def cards(run: RunRecord) -> tuple[Card, ...]:
    """Test top-1 of the first exit, the operating point and the last exit, and the saving."""
    point, first = operating_point(run), run.exits.iloc[0]
    assert point.mean_cost is not None and point.cost_share is not None
    accuracies = (
        ("First exit alone", first["top1"], f"{format_count(first['macs'])} multiply-adds"),
        (
            "Operating point",
            point.top1,
            f"mean {format_count(point.mean_cost)} multiply-adds",
        ),
        ("Full network", run.full_top1, f"{format_count(run.full_macs)} multiply-adds"),
    )
    difference = format_signed(point.top1 - run.full_top1)
    return (
        *(
            Card(name, f"{format_percentage(top1)}%", f"{_interval(run, top1)}{cost}", i == 1)
            for i, (name, top1, cost) in enumerate(accuracies)
        ),
        Card(
            "Saving",
            f"{1 / point.cost_share:.1f}x less",
            f"compute per image than the full network, for {difference} points of top-1",
        ),
    )


def _interval(run: RunRecord, top1: float) -> str:
    """The interval of an accuracy over test images; "" if their number is not known."""
    examples = (run.dataset.get("examples") or {}).get("test")
    if not examples:
        return ""
    low, high = 100.0 * wilson_interval(top1 / 100.0, examples, CONFIDENCE_LEVEL)
    return f"95% interval {format_percentage(low)} to {format_percentage(high)}, "
