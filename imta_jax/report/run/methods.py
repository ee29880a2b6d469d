"""Comparison of methods of choosing thresholds: accuracy, cost, and gains with intervals."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

from imta_jax.errors import InputError
from imta_jax.report.run.budget import COST_AXIS, accuracy_range
from imta_jax.report.run.record import RunRecord
from imta_jax.report.style import (
    ADAPTIVE,
    INK,
    MILLION,
    MUTED,
    QUANTITY,
    format_signed,
    new_figure,
    style_axes,
)

METHOD_NAMES = {
    "sweep": "geometric sweep",
    "envelope": "monotone frontier of the sweep",
    "temperature": "sweep, temperature scaling",
    "optimised": "optimized",
    "patience": "patience",
    "expectation": "risk control, in expectation",
    "clipped": "risk control, early-exit errors",
    "net": "risk control, net errors",
}
RISK_CONTROL = "#b35c00"
# Method, marker, color, label. The monotone frontier is too close to the sweep to be drawn.
DRAWN = (
    ("sweep", "o-", MUTED, "● geometric sweep"),
    ("temperature", "D-", QUANTITY, "◆ temperature scaling"),
    ("optimised", "o-", ADAPTIVE, "● optimized"),
    ("patience", "s", INK, "■ patience"),
    ("clipped", "^", RISK_CONTROL, "▲ risk control"),
)
WITH_BAND = ("sweep", "optimised")
LEAST_GAIN_POINTS = 0.5


def figure_threshold_methods(run: RunRecord) -> Figure:
    """Draws test top-1 against cost by method, and the gain over the sweep at equal cost.

    Args:
      run: A run whose `threshold_methods` is not None.

    Returns:
      The figure.

    Raises:
      ValueError: The run's results have no comparison of methods.
    """
    points = _points(run)
    points = points[points["method"].isin([method for method, *_ in DRAWN])]
    figure = new_figure(8.4, 6.6, _title(points[points["method"] == "optimised"]))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(above, title=" ")  # Reserves space for the labels.
    above.set_ylabel("top-1 on test images (%)")
    low, high = accuracy_range(run)
    above.set_ylim(low, max(high, points["top1_high"].max() + 0.1))
    above.set_xlim(0, 1.04 * run.full_macs / MILLION)
    level = f"{run.threshold_methods['confidence_level']:.0%}"
    title = f"gain at equal cost on validation images; bars and bands are {level} intervals"
    style_axes(below, title=title, x=COST_AXIS)
    below.set_ylabel("points")
    below.axhline(0, color=MUTED, linewidth=1)
    for method, style, color, _ in DRAWN:
        of_method = points[points["method"] == method].sort_values("mean_cost")
        _draw_accuracy(above, of_method, method, style, color)
        if method != "sweep":
            _draw_gain(below, of_method, style, color)
    most = max(points["gain_high"].max(), -points["gain_low"].min(), LEAST_GAIN_POINTS)
    below.set_ylim(-1.05 * most, 1.05 * most)
    _name_methods(above)
    return figure


def methods_table(run: RunRecord) -> pd.DataFrame:
    """One row per method at each reported budget, patience and tolerance; may be empty."""
    if run.threshold_methods is None:
        return pd.DataFrame()
    points = _points(run)
    if "budget" in points:
        reported = list(run.reported_budgets.get("budget", ()))
        points = points[points["budget"].isna() | points["budget"].isin(reported)]
    level = f"{run.threshold_methods['confidence_level']:.0%} interval"
    low, high = points["gain_low"], points["gain_high"]
    return pd.DataFrame(
        {
            "thresholds": [METHOD_NAMES.get(m, m) for m in points["method"]],
            "target": points["asked"].to_list(),
            "mean multiply-adds": [f"{v:,.0f}" for v in points["mean_cost"]],
            "of the last exit": [f"{v / run.full_macs:.1%}" for v in points["mean_cost"]],
            "top-1 (%)": [f"{v:.2f}" for v in points["top1"]],
            level: _ranges(points["top1_low"], points["top1_high"], "{:.2f}".format),
            "gain over the sweep (points)": [format_signed(v, 2) for v in points["gain"]],
            f"{level} ": _ranges(low, high, lambda v: format_signed(v, 2)),
        }
    )


def _points(run: RunRecord) -> pd.DataFrame:
    if run.threshold_methods is None:
        raise InputError(
            f"{run.workdir / 'results.json'} has no threshold_methods; evaluate the run again"
        )
    return pd.DataFrame(run.threshold_methods["points"])


def _ranges(low: pd.Series, high: pd.Series, text: object) -> list[str]:
    return [f"{text(a)} to {text(b)}" for a, b in zip(low, high, strict=True)]


def _title(optimised: pd.DataFrame) -> str:
    """States at how many budgets optimized thresholds differ significantly from the sweep."""
    better, worse = (optimised["gain_low"] > 0).sum(), (optimised["gain_high"] < 0).sum()
    if better:
        return f"Optimized thresholds beat the sweep at {better} of {len(optimised)} budgets"
    if worse:
        return f"Optimized thresholds lose to the sweep at {worse} of {len(optimised)} budgets"
    return "Optimized thresholds do not differ significantly from the sweep"


def _draw_accuracy(axes: Axes, points: pd.DataFrame, method: str, style: str, color: str) -> None:
    cost = points["mean_cost"].to_numpy(dtype=float) / MILLION
    axes.plot(cost, points["top1"], style, color=color, markersize=4, linewidth=1.6, zorder=4)
    if method in WITH_BAND:
        low, high = points["top1_low"], points["top1_high"]
        axes.fill_between(cost, low, high, color=color, alpha=0.12, linewidth=0, zorder=1)


def _draw_gain(axes: Axes, points: pd.DataFrame, style: str, color: str) -> None:
    cost = points["mean_cost"].to_numpy(dtype=float) / MILLION
    gain = points["gain"].to_numpy(dtype=float)
    # A bootstrap interval may exclude the mean if predictions agree on nearly all images.
    ends = [(gain - points["gain_low"]).clip(lower=0), (points["gain_high"] - gain).clip(lower=0)]
    look = {"markersize": 4, "linewidth": 1.2, "elinewidth": 1, "alpha": 0.85}
    axes.errorbar(cost, gain, yerr=ends, fmt=style, color=color, zorder=4, **look)


def _name_methods(axes: Axes) -> None:
    """Labels the methods above the axes, where they cannot cross a curve."""
    look = {"fontsize": 9.5, "fontweight": "bold"}
    names = [TextArea(name, textprops=look | {"color": color}) for _, _, color, name in DRAWN]
    row = HPacker(children=names, pad=0, sep=14)
    anchor = {"bbox_to_anchor": (0.0, 1.01), "bbox_transform": axes.transAxes}
    box = AnchoredOffsetbox("lower left", child=row, frameon=False, pad=0, **anchor)
    box.set_in_layout(False)
    axes.add_artist(box)
