"""Figures of single exits: accuracy, cost, calibration, and the classes that exit early."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.errors import InputError
from imta_jax.report.run.budget import LEAST_RANGE_POINTS
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.run.summary import operating_point
from imta_jax.report.style import (
    INK,
    MUTED,
    darken_for_text,
    exit_colors,
    format_count,
    format_percentage,
    format_share,
    new_figure,
    style_axes,
    truncate,
)

MAX_CLASSES = 24
CLASSES_PER_END = 10
PANELS_PER_ROW = 4
MAX_LABELED_EXITS = 8


def figure_exits(run: RunRecord) -> Figure:
    """Draws top-1, top-5 (if there are more than five classes) and calibration error per exit.

    Reads `run.exits` and the class names.
    """
    first = run.exits.iloc[0]
    share = format_share(first["macs"] / run.full_macs)
    title = (
        f"Exit 1: {format_percentage(first['top1'])}% at {share} of the cost; "
        f"exit {run.num_exits}: {format_percentage(run.full_top1)}%"
    )
    panels = {"top1": "top-1 (%)", "top5": "top-5 (%)", "ece": "expected calibration error (%)"}
    if len(run.dataset.get("class_names") or []) in range(1, 6):
        del panels["top5"]
    figure = new_figure(8.4, 1.0 + 1.5 * len(panels), title)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, name) in zip(grid, panels.items(), strict=True):
        _draw_column(axes, run, column)
        # Each point is labeled with its value, so ticks would be redundant.
        axes.set_yticks([])
        style_axes(axes, title=name, grid="")
    _name_exits(grid[-1], run)
    return figure


def _draw_column(axes: Axes, run: RunRecord, column: str) -> None:
    values = run.exits[column].to_numpy(dtype=float)
    exits = np.arange(run.num_exits)
    axes.plot(exits, values, color=MUTED, linewidth=1, zorder=2)
    axes.scatter(exits, values, s=70, color=exit_colors(run.num_exits), zorder=3)
    for exit_, value in zip(exits, values, strict=True):
        axes.annotate(
            format_percentage(value),
            (exit_, value),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            fontweight="bold",
            color=INK,
        )
    spread = np.ptp(values)
    missing = max(LEAST_RANGE_POINTS - spread, 0.0)
    margin = max(spread, LEAST_RANGE_POINTS)
    low = values.min() - 0.2 * margin - 0.5 * missing
    axes.set_ylim(low, values.max() + 0.4 * margin + 0.5 * missing)
    axes.set_xlim(-0.5, run.num_exits - 0.5)


def _name_exits(axes: Axes, run: RunRecord) -> None:
    names = [
        f"exit {exit_:.0f}\n{format_count(macs)}\n{format_count(params)}"
        for exit_, macs, params in run.exits[["exit", "macs", "params"]].to_numpy()
    ]
    axes.set_xticks(range(run.num_exits), names, linespacing=1.5)
    axes.set_xlabel("below each exit: cumulative multiply-adds, cumulative parameters", color=MUTED)


def figure_reliability(run: RunRecord) -> Figure:
    """Draws accuracy against confidence, one panel per exit.

    Reads `run.calibration` and `run.exits`.

    Raises:
      ValueError: the run has no calibration.
    """
    calibration = run.require("calibration", "evaluation/calibration.npz")
    errors = run.exits["ece"].to_numpy(dtype=float)
    least, most = format_percentage(errors.min()), format_percentage(errors.max())
    title = f"Expected calibration error: {least}% to {most}% over the exits"
    rows = -(-run.num_exits // PANELS_PER_ROW)
    figure = new_figure(8.4, 0.7 + 2.1 * rows, title)
    grid = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).ravel()
    for exit_, color in enumerate(exit_colors(run.num_exits)):
        bins = [calibration[name][exit_] for name in ("confidence", "accuracy", "count")]
        _draw_reliability(grid[exit_], run, exit_, bins, color)
    for axes in grid[run.num_exits :]:
        axes.remove()
    return figure


def _draw_reliability(
    axes: Axes, run: RunRecord, exit_: int, bins: list[np.ndarray], color: str
) -> None:
    """Draws accuracy against confidence; `bins` has confidence, accuracy and count per bin."""
    confidence, accuracy, count = bins
    seen = count > 0
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(100 * confidence[seen], 100 * accuracy[seen], color=color, linewidth=1.5)
    sizes = 8 + 130 * count[seen] / max(count.sum(), 1)
    points = (100 * confidence[seen], 100 * accuracy[seen])
    # Not clipped: the largest point is in the corner, at high confidence and accuracy.
    axes.scatter(*points, s=sizes, color=color, zorder=3, clip_on=False)
    axes.set(xlim=(0, 104), ylim=(0, 104), xticks=(0, 50, 100), yticks=(0, 50, 100), aspect=1)
    below = exit_ + PANELS_PER_ROW < run.num_exits
    style_axes(
        axes,
        title=f"exit {exit_ + 1}: ECE {format_percentage(run.exits['ece'].iloc[exit_])}%",
        x="" if below else "confidence (%)",
        y="" if exit_ % PANELS_PER_ROW else "accuracy (%)",
    )


def figure_classes(run: RunRecord) -> Figure:
    """Draws the exits that each class uses, cheapest class first.

    The budget is the reported one nearest to the operating point. With many classes, only the
    cheapest and the most expensive ones are drawn. Reads `run.samples`.

    Raises:
      ValueError: the run has no samples.
    """
    budget = nearest_reported_budget(run)
    table = class_costs(run, budget)
    names = [f"“{truncate(run.class_name(table.index[i]), 16)}”" for i in (0, -1)]
    costs = [format_count(table["macs"].iloc[i]) for i in (0, -1)]
    title = f"{names[0]} costs {costs[0]} on average, {names[1]} {costs[1]}"
    drawn_classes, gap_after = _both_ends(table)
    figure = new_figure(8.4, 1.3 + 0.3 * len(drawn_classes), title)
    axes = figure.subplots()
    _draw_classes(axes, run, drawn_classes, gap_after)
    style_axes(
        axes,
        x=f"fraction of the class's test images (%), at a budget of {budget}% of the full cost",
        grid="",
    )
    return figure


def _samples(run: RunRecord) -> pd.DataFrame:
    return run.require("samples", "evaluation/samples.parquet")


def nearest_reported_budget(run: RunRecord) -> int:
    """The budget (percent) in `samples.parquet` with mean cost nearest to the operating point.

    Raises:
      ValueError: the samples have no budget.
    """
    names = [re.fullmatch(r"budget_(\d+)_macs", str(column)) for column in _samples(run).columns]
    budgets = [int(name[1]) for name in names if name]
    if not budgets:
        columns = list(_samples(run).columns)
        raise InputError(f"samples.parquet must have columns budget_*_macs; found {columns}")
    target = operating_point(run).mean_cost
    return min(budgets, key=lambda b: abs(_samples(run)[f"budget_{b}_macs"].mean() - target))


def class_costs(run: RunRecord, budget: int) -> pd.DataFrame:
    """Mean cost, accuracy and exit fractions per class, cheapest class first.

    Args:
      run: a run with samples.
      budget: a reported budget in percent.

    Returns:
      A frame indexed by class number with the columns `macs` (mean), `top1` (percent) and, for
      each exit i from 0, column i with the fraction of images that use it (percent).
    """
    samples, prefix = _samples(run), f"budget_{budget}"
    labels = samples["label"]
    frame = pd.DataFrame(
        {i: 100.0 * (samples[f"{prefix}_exit"] == i) for i in range(run.num_exits)}
    )
    frame["macs"] = samples[f"{prefix}_macs"]
    frame["top1"] = 100.0 * (samples[f"{prefix}_prediction"] == labels)
    means = pd.DataFrame(frame.groupby(labels).mean())
    return means.sort_values("macs", kind="stable")


def _both_ends(table: pd.DataFrame) -> tuple[pd.DataFrame, int | None]:
    """All classes, or the first and last ones with the row after which classes are omitted."""
    if len(table) <= MAX_CLASSES:
        return table, None
    return pd.concat([table.head(CLASSES_PER_END), table.tail(CLASSES_PER_END)]), CLASSES_PER_END


def _draw_classes(axes: Axes, run: RunRecord, table: pd.DataFrame, gap_after: int | None) -> None:
    rows = np.arange(len(table), dtype=float)
    if gap_after is not None:
        rows[gap_after:] += 1
        axes.text(50, gap_after, "⋯", ha="center", va="center", color=MUTED)
    left = np.zeros(len(table))
    for exit_, color in enumerate(exit_colors(run.num_exits)):
        axes.barh(rows, table[exit_], left=left, color=color, height=0.8, edgecolor="white")
        left = left + table[exit_].to_numpy()
    names = [truncate(run.class_name(label), 22) for label in table.index]
    axes.set_yticks(rows, names, parse_math=False)
    axes.set(xlim=(0, 100), ylim=(rows[-1] + 0.6, -1.6))
    _note_columns(axes, rows, table)
    _name_exit_colors(axes, run.num_exits)


def _note_columns(axes: Axes, rows: np.ndarray, table: pd.DataFrame) -> None:
    """Writes mean cost and top-1 as two columns to the right of the bars."""
    columns = (
        (112, "mean cost", [format_count(v) for v in table["macs"]]),
        (124, "top-1", [f"{v:.0f}%" for v in table["top1"]]),
    )
    for x, name, texts in columns:
        for row, text in zip([-1, *rows], [name, *texts], strict=True):
            color = MUTED if row == -1 else INK
            axes.text(x, row, text, ha="right", va="center", fontsize=9, color=color)


def _name_exit_colors(axes: Axes, num_exits: int) -> None:
    """Writes the exits' names in their colors above the bars."""
    colors = exit_colors(num_exits)
    prefix = "exit " if num_exits <= MAX_LABELED_EXITS else ""
    for exit_, x in enumerate(np.linspace(0, 100, num_exits + 1)[:-1]):
        axes.text(
            x,
            -1,
            f"■ {prefix}{exit_ + 1}",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=darken_for_text(colors[exit_]),
        )
