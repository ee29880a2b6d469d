"""Figures of the budget curve: accuracy against cost, and the exits that images take."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.run.summary import operating_point
from imta_jax.report.style import (
    ADAPTIVE,
    INK,
    MILLION,
    MUTED,
    exit_colors,
    format_count,
    format_percentage,
    format_share,
    new_figure,
    numbered_circle,
    percentage_ticks,
    style_axes,
    text_color_on,
    white_outline,
)

LEAST_RANGE_POINTS = 5.0
READABLE_RANGE_POINTS = 8.0
COST_AXIS = "mean multiply-adds per image (millions)"


def figure_budget_curve(run: RunRecord) -> Figure:
    """Draws test top-1 against mean multiply-adds: adaptive, single exits, and the full network.

    Reads `run.exits` and `run.budget_curve`.
    """
    point = operating_point(run)
    assert point.cost_share is not None
    share = format_share(point.cost_share)
    title = f"{format_percentage(point.top1)}% at {share} of the full network's multiply-adds"
    figure = new_figure(8.4, 4.9, title)
    axes = figure.subplots()
    style_axes(axes, title="test images; thresholds chosen on validation images", x=COST_AXIS)
    axes.set_ylabel("top-1 (%)")
    low, high = accuracy_range(run)
    axes.set_ylim(low, high + 0.2 * (high - low))
    axes.set_xlim(0, 1.04 * run.full_macs / MILLION)
    _draw_full_network(axes, run)
    _draw_single_exits(axes, run)
    _draw_adaptive(axes, run)
    _draw_operating_point(axes, run)
    _name_lines(axes)
    percentage_ticks(axes)
    return figure


def accuracy_range(run: RunRecord) -> tuple[float, float]:
    """Limits of the top-1 axis in percent.

    The cheapest points may be tens of points below the others and would flatten the curve. Points
    below 30% of the full network's cost are included if the range stays readable: if it at most
    triples or is at most `READABLE_RANGE_POINTS`.
    """
    costs = np.concatenate([run.exits["macs"], run.budget_curve["mean_macs"]])
    top1 = np.concatenate([run.exits["top1"], run.budget_curve["top1"]]).astype(float)
    high = top1.max()
    low = top1[costs >= 0.3 * run.full_macs].min()
    if high - top1.min() <= max(3 * (high - low), READABLE_RANGE_POINTS):
        low = top1.min()
    return with_margins(low, high)


def with_margins(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis for accuracies from `low` to `high`, at least `LEAST_RANGE_POINTS` apart.

    On a few thousand test images, differences of tenths of a point are noise.
    """
    missing = max(LEAST_RANGE_POINTS - (high - low), 0.0)
    margin = 0.07 * (high - low)
    return low - margin - 0.7 * missing, high + margin + 0.3 * missing


def _draw_full_network(axes: Axes, run: RunRecord) -> None:
    axes.axhline(run.full_top1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"full network: {format_percentage(run.full_top1)}% at {format_count(run.full_macs)}",
        (0, run.full_top1),
        xytext=(4, 4),
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
        path_effects=white_outline(),
        zorder=6,  # above the line to the operating point, which may cross it
    )


def _draw_single_exits(axes: Axes, run: RunRecord) -> None:
    """Draws each exit as a numbered circle, on a thin line."""
    costs, top1 = run.exits["macs"] / MILLION, run.exits["top1"]
    axes.plot(costs, top1, color=MUTED, linewidth=1, zorder=2)
    low, high = axes.get_ylim()
    for exit_, cost, height, color in zip(
        run.exits["exit"], costs, top1, exit_colors(run.num_exits), strict=True
    ):
        numbered_circle(axes, int(exit_), cost, max(height, low + 0.035 * (high - low)), color)
        if height < low:
            _note_below_range(axes, cost, low + 0.035 * (high - low), height)


def _note_below_range(axes: Axes, cost: float, height: float, top1: float) -> None:
    """Labels a circle below the axis range; vertically, since cheap exits are close together."""
    axes.annotate(
        f"← {format_percentage(top1)}%",
        (cost, height),
        xytext=(0, 10),
        textcoords="offset points",
        ha="center",
        rotation=90,
        fontsize=8.5,
        color=MUTED,
        path_effects=white_outline(),
        zorder=6,
    )


def _draw_adaptive(axes: Axes, run: RunRecord) -> None:
    costs = run.budget_curve["mean_macs"].to_numpy(dtype=float) / MILLION
    top1 = run.budget_curve["top1"].to_numpy(dtype=float)
    axes.plot(costs, top1, "o-", color=ADAPTIVE, linewidth=2.2, markersize=3, zorder=4)


def _name_lines(axes: Axes) -> None:
    """Labels both lines above the axes, where they cannot cross a curve."""
    names = (
        (1.075, "adaptive: each image exits once confident", ADAPTIVE, "bold"),
        (1.025, "single exit: all images use the numbered exit", MUTED, "normal"),
    )
    for height, name, color, weight in names:
        axes.text(
            1.0,
            height,
            name,
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=9.5,
            fontweight=weight,
            color=color,
        )


def _draw_operating_point(axes: Axes, run: RunRecord) -> None:
    point = operating_point(run)
    assert point.mean_cost is not None
    cost = point.mean_cost / MILLION
    ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8}
    axes.plot(cost, point.top1, "o", color=INK, zorder=6, **ring)
    axes.annotate(
        f"{format_percentage(point.top1)}% at {format_count(point.mean_cost)}",
        (cost, point.top1),
        xytext=(cost, axes.get_ylim()[1]),
        ha="center",
        va="top",
        fontsize=10,
        fontweight="bold",
        color=INK,
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 7},
    )


def figure_exit_shares(run: RunRecord) -> Figure:
    """Draws the fraction of test images that use each exit, against mean multiply-adds.

    Reads `run.budget_curve`.
    """
    point = operating_point(run)
    assert point.mean_cost is not None and point.exit_fractions is not None
    cost, fractions = format_count(point.mean_cost), point.exit_fractions
    last = f"{fractions[-1]:.0%}"
    if last == "0%":
        last = "under 1%" if fractions[-1] > 0 else "none"
    title = f"At {cost}, {fractions[0]:.0%} of images use exit 1 and {last} the last exit"
    figure = new_figure(8.4, 4.2, title)
    axes = figure.subplots()
    style_axes(axes, x=COST_AXIS, y="fraction of test images (%)", grid="")
    curve = run.budget_curve.drop_duplicates("mean_macs")
    costs = curve["mean_macs"].to_numpy(dtype=float) / MILLION
    fractions = 100 * np.stack(curve["exit_fractions"].to_list(), axis=1)
    colors = exit_colors(run.num_exits)
    axes.stackplot(costs, fractions, colors=colors, edgecolor="white", linewidth=0.8)
    axes.set(xlim=(0, 1.04 * run.full_macs / MILLION), ylim=(0, 100))
    marked = point.mean_cost / MILLION
    _name_bands(axes, costs, fractions, colors, marked)
    _mark_cost(axes, marked)
    return figure


def _name_bands(
    axes: Axes, costs: np.ndarray, fractions: np.ndarray, colors: list[str], marked: float
) -> None:
    """Labels each exit where its band is thickest, away from the edges and the marked cost."""
    start, width = costs[0], costs[-1] - costs[0]
    places = start + width * np.linspace(0.07, 0.93, 60)
    free = np.abs(places - marked) > 0.05 * width
    places = places[free] if free.any() else places
    fractions = np.stack([np.interp(places, costs, share) for share in fractions])
    tops = np.cumsum(fractions, axis=0)
    for exit_, color in enumerate(colors):
        widest = int(np.argmax(fractions[exit_]))
        if fractions[exit_, widest] < 7:
            continue
        axes.annotate(
            f"exit {exit_ + 1}",
            (places[widest], tops[exit_, widest] - fractions[exit_, widest] / 2),
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=text_color_on(color),
        )


def _mark_cost(axes: Axes, cost: float) -> None:
    axes.axvline(cost, color="white", linewidth=1.6, linestyle=(0, (3, 2)))
    low, high = axes.get_xlim()
    x = (cost - low) / (high - low)
    axes.annotate(
        "operating point",
        (cost, 100),
        xytext=(0, 3),
        textcoords="offset points",
        # A centered text at an edge of the axes would overlap the tick labels.
        ha="left" if x < 0.1 else "right" if x > 0.9 else "center",
        fontsize=9,
        color=INK,
        annotation_clip=False,
    )
