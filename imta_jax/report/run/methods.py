"""Comparison of methods of choosing thresholds: accuracy, cost, and gains with intervals."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

from imta_jax.report.run.budget import COST_AXIS, accuracy_range
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import (
    ADAPTIVE,
    INK,
    MILLION,
    MUTED,
    QUANTITY,
    format_percentage,
    format_share,
    format_signed,
    new_figure,
    style_axes,
)

METHOD_NAMES = {
    "sweep": "geometric sweep",
    "envelope": "monotone frontier of the sweep",
    "temperature": "sweep, temperature scaling",
    "optimised": "optimized",
    "ensemble": "sweep, geometric ensemble",
    "gate": "learned gates",
    "patience": "patience",
    "expectation": "risk control, in expectation",
    "clipped": "risk control, early-exit errors",
    "net": "risk control, net errors",
}
RISK_CONTROL, ENSEMBLE, GATE = "#b35c00", "#7b4fa3", "#2f855a"
# Method, marker, color, label. The monotone frontier is too close to the sweep to be drawn.
DRAWN = (
    ("sweep", "o-", MUTED, "○ geometric sweep"),
    ("temperature", "D-", QUANTITY, "◆ temperature scaling"),
    ("optimised", "o-", ADAPTIVE, "● optimized"),
    ("ensemble", "v-", ENSEMBLE, "▼ ensemble"),
    ("gate", "P-", GATE, "✚ gates"),
    ("patience", "s", INK, "■ patience"),
    ("clipped", "^", RISK_CONTROL, "▲ risk control"),
)
WITH_BAND = ("sweep", "optimised")
LEAST_GAIN_POINTS = 0.5


def figure_threshold_methods(run: RunRecord) -> Figure:
    """Draws test top-1 against cost by method, and the gain over the sweep at equal cost.

    Args:
      run: a run whose `threshold_methods` is not None.

    Returns:
      The figure.

    Raises:
      ValueError: the run's results have no comparison of methods.
    """
    points = _points(run)
    drawn = [method for method, *_ in DRAWN]
    points = points.query(f"method in {drawn}")
    figure = new_figure(8.4, 6.6, _title(_of_method(points, "optimised")))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(above, title=" ")  # Reserves space for the labels.
    above.set_ylabel("top-1 on test images (%)")
    low, high = accuracy_range(run)
    above.set_ylim(low, max(high, points["top1_high"].max() + 0.1))
    above.set_xlim(0, 1.04 * run.full_macs / MILLION)
    level = f"{_comparison(run)['confidence_level']:.0%}"
    title = f"gain at equal cost on validation images; bars and bands are {level} intervals"
    style_axes(below, title=title, x=COST_AXIS)
    below.set_ylabel("points")
    below.axhline(0, color=MUTED, linewidth=1)
    methods = set(points["method"])  # Results of earlier versions have fewer methods.
    for method, style, color, _ in (drawn for drawn in DRAWN if drawn[0] in methods):
        of_method = _of_method(points, method)
        _draw_accuracy(above, of_method, method, style, color)
        if method != "sweep":
            _draw_gain(below, of_method, style, color)
    most = max(points["gain_high"].max(), -points["gain_low"].min(), LEAST_GAIN_POINTS)
    below.set_ylim(-1.05 * most, 1.05 * most)
    _name_methods(above, methods)
    return figure


def methods_table(run: RunRecord) -> pd.DataFrame:
    """One row per method at each reported budget, patience and tolerance; may be empty."""
    if run.threshold_methods is None:
        return pd.DataFrame()
    points = _points(run)
    if "budget" in points:
        reported = run.reported_budgets["budget"].tolist() if len(run.reported_budgets) else []
        points = points[points["budget"].isna() | points["budget"].isin(reported)]
    level = f"{_comparison(run)['confidence_level']:.0%} interval"
    low, high = points["gain_low"], points["gain_high"]
    return pd.DataFrame(
        {
            "method": [METHOD_NAMES.get(m, m) for m in points["method"]],
            "setting": list(points["asked"]),
            "mean multiply-adds": [f"{v:,.0f}" for v in points["mean_cost"]],
            "of the last exit": [format_share(v / run.full_macs) for v in points["mean_cost"]],
            "top-1 (%)": [format_percentage(v) for v in points["top1"]],
            level: _ranges(points["top1_low"], points["top1_high"], format_percentage),
            "gain over the sweep (points)": [format_signed(v) for v in points["gain"]],
            f"gain, {level}": _ranges(low, high, format_signed),
        }
    )


def _comparison(run: RunRecord) -> dict[str, Any]:
    return run.require("threshold_methods", "threshold_methods in results.json")


def _of_method(points: pd.DataFrame, method: str) -> pd.DataFrame:
    return points.query("method == @method").sort_values("mean_cost")


def _points(run: RunRecord) -> pd.DataFrame:
    return pd.DataFrame(_comparison(run)["points"])


def _ranges(low: Iterable[Any], high: Iterable[Any], text: Callable[[float], str]) -> list[str]:
    return [f"{text(a)} to {text(b)}" for a, b in zip(low, high, strict=True)]


def _title(optimized: pd.DataFrame) -> str:
    """States at how many budgets optimized thresholds differ significantly from the sweep."""
    better = int(np.sum(optimized["gain_low"].to_numpy() > 0))
    worse = int(np.sum(optimized["gain_high"].to_numpy() < 0))
    if better:
        return f"Optimized thresholds beat the sweep at {better} of {len(optimized)} budgets"
    if worse:
        return f"Optimized thresholds lose to the sweep at {worse} of {len(optimized)} budgets"
    return "Optimized thresholds do not differ significantly from the sweep"


def _draw_accuracy(axes: Axes, points: pd.DataFrame, method: str, style: str, color: str) -> None:
    cost = points["mean_cost"].to_numpy(dtype=float) / MILLION
    line_style: dict[str, Any] = {"markersize": 4, "linewidth": 1.6, "zorder": 4}
    if method == "sweep":  # Larger than the markers of other methods, which may hide it.
        line_style = {"markersize": 9, "markerfacecolor": "white", "linewidth": 1.6, "zorder": 3}
    axes.plot(cost, points["top1"], style, color=color, **line_style)
    if method in WITH_BAND:
        low, high = points["top1_low"], points["top1_high"]
        axes.fill_between(cost, low, high, color=color, alpha=0.12, linewidth=0, zorder=1)


def _draw_gain(axes: Axes, points: pd.DataFrame, style: str, color: str) -> None:
    cost = points["mean_cost"].to_numpy(dtype=float) / MILLION
    gain = points["gain"].to_numpy(dtype=float)
    # A bootstrap interval may exclude the mean if predictions agree on nearly all images.
    low, high = points["gain_low"].to_numpy(), points["gain_high"].to_numpy()
    ends = np.maximum([gain - low, high - gain], 0)
    line_style = {"markersize": 4, "linewidth": 1.2, "elinewidth": 1, "alpha": 0.85}
    axes.errorbar(cost, gain, yerr=ends, fmt=style, color=color, zorder=4, **line_style)


def _name_methods(axes: Axes, methods: Collection[str]) -> None:
    """Labels the drawn methods above the axes, where they cannot cross a curve."""
    font = {"fontsize": 8.5, "fontweight": "bold"}
    names: list[Artist] = [
        TextArea(name, textprops=font | {"color": color})
        for method, _, color, name in DRAWN
        if method in methods
    ]
    row = HPacker(children=names, pad=0, sep=11)
    anchor = {"bbox_to_anchor": (0.0, 1.01), "bbox_transform": axes.transAxes}
    box = AnchoredOffsetbox("lower left", child=row, frameon=False, pad=0, **anchor)
    box.set_in_layout(False)
    axes.add_artist(box)
