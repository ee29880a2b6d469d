"""A comparison of threshold methods as JSON values and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from imta_jax.evaluation.budget import DEFAULT_QUOTAS, Outcomes, checked_costs
from imta_jax.evaluation.methods.comparison import (
    DEFAULT_TOLERANCES,
    MethodCurve,
    compare_methods,
    compare_outcomes,
)
from imta_jax.evaluation.predictions import Predictions

# Confidence level of the guarantees and of the intervals.
CONFIDENCE_LEVEL = 0.95
# Names in tables and on the command line, where they differ from the name in result files.
_DISPLAY_NAMES = {"optimised": "optimized"}


def comparison_record(
    validation: Predictions | Outcomes,
    test: Predictions | Outcomes,
    costs: object,
    budgets: Sequence[float],
    *,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    confidence_level: float = CONFIDENCE_LEVEL,
) -> dict[str, Any]:
    """Compares all methods and records the settings of the comparison.

    Args:
      validation: logits [E, N, K] and labels [N] of validation images, or their scores and
        correctness (see `compare_outcomes`).
      test: the same of test images.
      costs: [E] cumulative cost per exit, or an object with these as `.macs`.
      budgets: mean costs, as fractions of the last exit's cost.
      quotas: quotas of the sweep (see `geometric_quota`).
      tolerances: tolerances of the guarantees, in percentage points of accuracy.
      confidence_level: confidence level of the guarantees and of the intervals.

    Returns:
      `confidence_level`, `resamples` and `seed` of the intervals, `images` per split, `full_cost`
      (of the last exit) and `points` (see `comparison_rows`).

    Raises:
      ValueError: see `compare_methods` and `compare_outcomes`.
    """
    settings = {"confidence_level": confidence_level, "resamples": 1000, "seed": 0}
    compare = compare_outcomes if isinstance(validation, Outcomes) else compare_methods
    curves = compare(
        validation, test, costs, budgets, quotas=quotas, tolerances=tolerances, **settings
    )
    return {
        **settings,
        "images": {"validation": validation[0].shape[1], "test": test[0].shape[1]},
        "full_cost": float(checked_costs(costs, len(validation[0]))[-1]),
        "points": comparison_rows(curves),
    }


def comparison_rows(curves: Mapping[str, MethodCurve]) -> list[dict[str, Any]]:
    """The points of all methods as JSON values.

    Returns:
      Per point `method`, its settings as text (`asked`) and as numbers (`budget`, `patience`,
      `tolerance_points`, `confidence_level`), `top1`, `top1_low`, `top1_high`, `mean_cost`,
      `validation_top1`, `validation_cost`, `gain`, `gain_low`, `gain_high`, `exit_fractions` and,
      if the method has them, `thresholds` and `temperatures` (see `MethodCurve`).
    """
    return [_row(curve, p) for curve in curves.values() for p in range(len(curve.settings))]


def comparison_text(record: Mapping[str, Any]) -> str:
    """The points as a text table, with costs as fractions of the last exit's cost."""
    table_rows = [
        {
            "method": display_name(row["method"]),
            "setting": row["asked"],
            "validation cost": f"{row['validation_cost'] / record['full_cost']:.1%}",
            "test cost": f"{row['mean_cost'] / record['full_cost']:.1%}",
            "top-1 (%)": f"{row['top1']:.2f}",
            "interval": f"{row['top1_low']:.2f} to {row['top1_high']:.2f}",
            "gain over sweep": f"{row['gain']:+.2f}",
            "gain interval": f"{row['gain_low']:+.2f} to {row['gain_high']:+.2f}",
        }
        for row in record["points"]
    ]
    level = f"{100 * record['confidence_level']:g}%"
    note = (
        f"{record['images']['validation']:,} validation images, {record['images']['test']:,} test "
        f"images, {level} intervals. The gain is the difference in top-1, "
        "in percentage points, to the geometric sweep at the same validation cost."
    )
    return f"{_text_table(table_rows, left_aligned=2)}\n\n{note}"


def display_name(method: str) -> str:
    """The name of a method in tables and on the command line."""
    return _DISPLAY_NAMES.get(method, method)


def name_in_files(method: str) -> str:
    """The name in result files of a method given by that name or by its name in tables."""
    return {name: stored for stored, name in _DISPLAY_NAMES.items()}.get(method, method)


def _text_table(rows: Sequence[Mapping[str, str]], left_aligned: int) -> str:
    """Rows under the names of their columns, of which the first are aligned to the left."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left_aligned else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _row(curve: MethodCurve, p: int) -> dict[str, Any]:
    row = {
        "method": curve.method,
        "asked": _setting_text(curve.settings[p]),
        **curve.settings[p],
        "top1": curve.accuracy[p].item(),
        "top1_low": curve.accuracy_interval[p, 0].item(),
        "top1_high": curve.accuracy_interval[p, 1].item(),
        "mean_cost": curve.mean_cost[p].item(),
        "validation_top1": curve.validation_accuracy[p].item(),
        "validation_cost": curve.validation_cost[p].item(),
        "gain": curve.gain[p].item(),
        "gain_low": curve.gain_interval[p, 0].item(),
        "gain_high": curve.gain_interval[p, 1].item(),
        "exit_fractions": curve.exit_fractions[p].tolist(),
    }
    if curve.thresholds is not None:
        row["thresholds"] = curve.thresholds[p].tolist()
    if curve.temperatures is not None:
        row["temperatures"] = curve.temperatures.tolist()
    return row


def _setting_text(settings: Mapping[str, float]) -> str:
    """A point's settings as text: "budget 30%", "2 exits agree", "1 point, 95% sure"."""
    if "budget" in settings:
        return f"budget {100 * settings['budget']:g}%"
    if "patience" in settings:
        return "first exit" if settings["patience"] == 1 else f"{settings['patience']} exits agree"
    points = f"{settings['tolerance_points']:g} point" + "s" * (settings["tolerance_points"] != 1)
    level = settings.get("confidence_level")
    return f"{points} on average" if level is None else f"{points}, {100 * level:g}% sure"
