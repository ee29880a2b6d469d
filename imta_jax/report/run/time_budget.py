"""Figure of the accuracy against measured milliseconds per image."""

import numpy as np
from matplotlib.figure import Figure

from imta_jax.report.run.budget import with_margins
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import (
    ADAPTIVE,
    MUTED,
    exit_colors,
    format_share,
    new_figure,
    numbered_circle,
    percentage_ticks,
    style_axes,
)


def figure_time(run: RunRecord) -> Figure:
    """Draws test top-1 against milliseconds per image, for adaptive inference and single exits.

    Args:
      run: a run whose `time` is not None. Reads `run.exits` too.

    Returns:
      The figure.
    """
    measured = run.time or {}
    exit_ms, top1 = np.asarray(measured["exit_ms"]), run.exits["top1"].to_numpy(dtype=float)
    figure = new_figure(8.4, 4.6, _title(exit_ms, run))
    axes = figure.subplots()
    subtitle = f"measured on {measured['device']}, {measured['lanes']} concurrent workers"
    if never := measured.get("exits_never_kept"):
        subtitle += f"; stopping never saves time at exit {', '.join(map(str, never))}"
    style_axes(axes, title=subtitle, x="milliseconds per image, large batches", y="top-1 (%)")
    points = sorted((row["mean_ms"], row["top1"]) for row in measured["budget_curve"])
    axes.plot(*zip(*points, strict=True), "o-", color=ADAPTIVE, linewidth=2.2, markersize=3)
    axes.plot(exit_ms, top1, color=MUTED, linewidth=1, zorder=2)
    for i, color in enumerate(exit_colors(run.num_exits)):
        numbered_circle(axes, i + 1, exit_ms[i], top1[i], color)
    axes.set_xlim(0, 1.04 * exit_ms[-1])
    shown = [*top1, *(accuracy for _, accuracy in points)]
    axes.set_ylim(*with_margins(min(shown), max(shown)))
    percentage_ticks(axes)
    return figure


def _title(exit_ms: np.ndarray, run: RunRecord) -> str:
    """States the first exit's fraction of the full network's time and multiply-adds."""
    fraction = float(run.exits["macs"].iloc[0]) / run.full_macs
    return (
        f"Exit 1 takes {format_share(exit_ms[0] / exit_ms[-1])} of the full network's time "
        f"and {format_share(fraction)} of its multiply-adds"
    )
