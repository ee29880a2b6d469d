"""The figure of budgets in time: accuracy against measured milliseconds per image."""

import numpy as np
from matplotlib.figure import Figure

from imta_jax.report.run.record import RunRecord
from imta_jax.report.style import (
    ADAPTIVE,
    MUTED,
    exit_colors,
    new_figure,
    percentage_ticks,
    style_axes,
    text_color_on,
)


def figure_time(run: RunRecord) -> Figure:
    """Test top-1 against milliseconds per image, adaptive and per exit.

    Args:
      run: a run whose `time` is not None; reads `run.exits` too.

    Returns:
      The figure.
    """
    measured = run.time or {}
    exit_ms, top1 = np.asarray(measured["exit_ms"]), run.exits["top1"].to_numpy(dtype=float)
    figure = new_figure(8.4, 4.6, _finding(exit_ms, run))
    axes = figure.subplots()
    where = f"measured on {measured['device']}, {measured['lanes']} programs at a time"
    style_axes(axes, title=where, x="milliseconds per image, large batches", y="top-1 (%)")
    points = sorted((row["mean_ms"], row["top1"]) for row in measured["budget_curve"])
    axes.plot(*zip(*points, strict=True), "o-", color=ADAPTIVE, linewidth=2.2, markersize=3)
    axes.plot(exit_ms, top1, color=MUTED, linewidth=1, zorder=2)
    for i, color in enumerate(exit_colors(run.num_exits)):
        axes.plot(exit_ms[i], top1[i], "o", color=color, markersize=14, markeredgecolor="white")
        axes.annotate(
            str(i + 1),
            (exit_ms[i], top1[i]),
            ha="center",
            va="center_baseline",
            fontsize=8.5,
            fontweight="bold",
            color=text_color_on(color),
        )
    axes.set_xlim(0, 1.04 * exit_ms[-1])
    margin = max(0.5, 0.1 * np.ptp(top1))
    axes.set_ylim(top1.min() - margin, max(top1.max(), max(t for _, t in points)) + margin)
    percentage_ticks(axes)
    return figure


def _finding(exit_ms: np.ndarray, run: RunRecord) -> str:
    """What the first exit takes of the whole network's time, beside its multiply-adds."""
    share = float(run.exits["macs"].iloc[0]) / run.full_macs
    return (
        f"Exit 1 takes {exit_ms[0] / exit_ms[-1]:.0%} of the full network's time "
        f"and {share:.0%} of its multiply-adds"
    )
