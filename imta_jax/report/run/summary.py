"""The numbers that open a report: the full network, the operating point, the saving."""

from dataclasses import dataclass

import numpy as np

from imta_jax.report.run.record import RunRecord

TOLERANCE_POINTS = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """One point of the budget curve, chosen on validation images.

    Attributes:
      mean_macs: mean multiply-adds per test image.
      cost_share: `mean_macs` as a fraction of the last exit's multiply-adds.
      top1: test top-1, percent.
      change_points: `top1` minus the last exit's, in percentage points.
      saving_factor: how many times fewer multiply-adds than the last exit.
      exit_fractions: [E], the share of test images that leave at each exit.
    """

    mean_macs: float
    cost_share: float
    top1: float
    change_points: float
    saving_factor: float
    exit_fractions: np.ndarray


def operating_point(run: RunRecord, tolerance_points: float = TOLERANCE_POINTS) -> OperatingPoint:
    """The cheapest budget that costs (nearly) no validation accuracy.

    Args:
      run: the run.
      tolerance_points: how far below the last exit's validation top-1 it may lie, in points.

    Returns:
      The cheapest such point of the budget curve; where none is so good, the one with the best
      validation top-1. Test images have no say.
    """
    curve = run.budget_curve
    good = curve[curve["validation_top1"] >= full_validation_top1(run) - tolerance_points]
    row = good.iloc[0] if len(good) else curve.loc[curve["validation_top1"].idxmax()]
    return OperatingPoint(
        mean_macs=float(row["mean_macs"]),
        cost_share=float(row["mean_macs"]) / run.full_macs,
        top1=float(row["top1"]),
        change_points=float(row["top1"]) - run.full_top1,
        saving_factor=run.full_macs / float(row["mean_macs"]),
        exit_fractions=np.asarray(row["exit_fractions"], dtype=float),
    )


def full_validation_top1(run: RunRecord) -> float:
    """Validation top-1 of the last exit, percent."""
    return float(run.exits["validation_top1"].iloc[-1])
