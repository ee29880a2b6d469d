"""Thresholds for several budgets, and which of them a budget asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OperatingPoint:
    """One way to run a network with early exits.

    Attributes:
      budget: mean multiply-adds per image as a share of those of the last exit, above 0 and at most
        1, on the validation images.
      thresholds: [E], confidences at which images leave.
      exit_fractions: [E], share of the validation images that left at each exit.
      validation_top1: accuracy in percent on the validation images, on which it was chosen.
      top1: accuracy in percent on the test images.
    """

    budget: float
    thresholds: tuple[float, ...]
    exit_fractions: tuple[float, ...]
    validation_top1: float
    top1: float

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "OperatingPoint":
        """Out of its fields as JSON has them; a missing or unknown one is a TypeError."""
        per_exit = ("thresholds", "exit_fractions")
        return cls(**{k: tuple(v) if k in per_exit else v for k, v in fields.items()})


def worthwhile(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Those that no cheaper or equally cheap one reaches in validation accuracy, cheapest first."""
    kept: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.budget, -point.validation_top1)):
        if not kept or point.validation_top1 > kept[-1].validation_top1:
            kept.append(point)
    return tuple(kept)


def point_for(points: Sequence[OperatingPoint], budget: float) -> OperatingPoint:
    """The best by validation accuracy of those that do not exceed the budget.

    Args:
      points: as `worthwhile` orders them.
      budget: share of the last exit's multiply-adds per image, above 0.

    Raises:
      ValueError: a budget that is not above 0, or below all points; lists them.
    """
    if not budget > 0:
        raise ValueError(
            f"a budget is a share of the full multiply-adds, above 0, e.g. 0.5; found {budget:g}"
        )
    affordable = [point for point in points if point.budget <= budget]
    if not affordable:
        found = ", ".join(f"{point.budget:.3f}" for point in points)
        raise ValueError(
            f"no operating point has a budget of {budget:g} or less of the full multiply-adds; "
            f"there are: {found}"
        )
    return affordable[-1]


def point_within_ms(
    points: Sequence[OperatingPoint], exit_ms: Sequence[float], budget_ms: float
) -> OperatingPoint:
    """The best by validation accuracy of those that take no longer, in the mean over images.

    Args:
      points: see `worthwhile`.
      exit_ms: [E], milliseconds per image until each exit (`StageProfile.exit_ms`).
      budget_ms: milliseconds per image.

    Raises:
      ValueError: all points take longer; tells the shortest.
    """
    expected = [
        sum(share * ms for share, ms in zip(point.exit_fractions, exit_ms, strict=True))
        for point in points
    ]
    affordable = [p for p, ms in zip(points, expected, strict=True) if ms <= budget_ms]
    if not affordable:
        raise ValueError(
            f"no operating point takes {budget_ms:g} ms per image or less here; the shortest "
            f"takes {min(expected):.3g} ms"
        )
    return max(affordable, key=lambda point: point.validation_top1)
