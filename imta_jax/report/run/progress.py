"""Figure of the training progress: accuracy and loss over the epochs of both phases."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imta_jax.config import PHASES
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import (
    INK,
    MUTED,
    exit_colors,
    format_percentage,
    format_signed,
    label_line_ends,
    new_figure,
    percentage_ticks,
    style_axes,
    white_outline,
)

PHASE_NAMES = {"phase_one": "phase I: all parameters", "phase_two": "phase II: heads only"}
MAX_DROPS = 4


@dataclass(frozen=True)
class _PhaseMetrics:
    """Metrics of one phase on the shared epoch axis; `offset` is the number of earlier epochs."""

    name: str
    rows: pd.DataFrame
    offset: int

    def rows_of(self, split: str) -> pd.DataFrame:
        return self.rows.query("split == @split")

    def epochs(self, split: str) -> np.ndarray:
        return self.offset + self.rows_of(split)["epoch"].to_numpy()

    @property
    def end(self) -> int:
        return self.offset + int(self.rows["epoch"].to_numpy().max())


def figure_training(run: RunRecord) -> Figure:
    """Draws top-1 per exit and loss over epochs: validation strong, training faint.

    Reads `run.metrics`.

    Raises:
      ValueError: the run has no metrics.
    """
    phases = _split_phases(run.require("metrics", "metrics.jsonl of a phase"))
    figure = new_figure(8.4, 6.2, _title(phases))
    accuracy, loss = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _draw_accuracy(accuracy, phases, exit_colors(run.num_exits))
    _draw_loss(loss, phases)
    style_axes(accuracy, y="top-1 (%)")
    percentage_ticks(accuracy)
    style_axes(loss, x="epoch", y="loss")
    for axes in (accuracy, loss):
        axes.set_xlim(0 if phases[-1].end > 1 else 0.5, phases[-1].end + 0.5)
        _divide_phases(axes, phases)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _mark_learning_rate(accuracy, phases)
    _name_phases(accuracy, phases)
    return figure


def _split_phases(metrics: pd.DataFrame) -> list[_PhaseMetrics]:
    phases: list[_PhaseMetrics] = []
    for name in PHASES:
        rows = metrics.query("phase == @name")
        if len(rows):
            phases.append(_PhaseMetrics(name, rows, phases[-1].end if phases else 0))
    return phases


def _final(phase: _PhaseMetrics) -> np.ndarray:
    """Top-1 per exit at the end of the phase, on validation images if they were logged."""
    validation = phase.rows_of("validation")
    rows = validation if len(validation) else phase.rows
    return np.asarray(rows["top1_per_exit"].iloc[-1], dtype=float)


def _title(phases: list[_PhaseMetrics]) -> str:
    final = _final(phases[-1])
    if len(phases) == 1:
        epochs = f"{phases[-1].end} epoch{'s' * (phases[-1].end > 1)}"
        first, last = format_percentage(final[0]), format_percentage(final[-1])
        ends = f"{first}% at exit 1, {last}% at exit {len(final)}"
        return f"Validation top-1 after {epochs}: {ends}"
    change = final - _final(phases[0])
    low, high = format_signed(change.min()), format_signed(change.max())
    if low == high == format_signed(0.0):
        return "Phase II does not change the exits' validation top-1"
    change_range = low if low == high else f"{low} to {high}"
    return f"Phase II changes the exits' validation top-1 by {change_range} points"


def _draw_accuracy(axes: Axes, phases: list[_PhaseMetrics], colors: list[str]) -> None:
    for phase in phases:
        for split, style in (("train", {"linewidth": 0.9, "alpha": 0.45}), ("validation", {})):
            if not len(phase.rows_of(split)):
                continue
            top1 = np.stack(phase.rows_of(split)["top1_per_exit"].to_list())
            for exit_, color in enumerate(colors):
                _line(axes, phase.epochs(split), top1[:, exit_], color, style)
    axes.set_ylim(*_accuracy_limits(phases))
    final = _final(phases[-1])
    names = [f"exit {i + 1}  {format_percentage(value)}%" for i, value in enumerate(final)]
    label_line_ends(axes, phases[-1].end, final.tolist(), names, colors)


def _line(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str, style: dict[str, float]
) -> None:
    """Draws a line, with markers for few epochs, since a single point has no line."""
    marker = "o" if len(epochs) < 6 else ""
    line_style: dict[str, Any] = {"linewidth": 1.7, **style}
    axes.plot(epochs, values, marker=marker, markersize=4, color=color, **line_style)


def _accuracy_limits(phases: list[_PhaseMetrics]) -> tuple[float, float]:
    """Limits that ignore the first tenth of the epochs, in which accuracy is unstable."""
    start = 0.1 * phases[-1].end
    values = np.concatenate(
        [
            np.stack(s.rows["top1_per_exit"].to_list())[s.offset + s.rows["epoch"] > start].ravel()
            for s in phases
        ]
    )
    margin = max(0.06 * (values.max() - values.min()), 0.5)
    return values.min() - margin, values.max() + 2.2 * margin


def _draw_loss(axes: Axes, phases: list[_PhaseMetrics]) -> None:
    ends: dict[str, float] = {}
    for phase in phases:
        for split, style in (("train", {"linewidth": 1.0, "alpha": 0.55}), ("validation", {})):
            losses = phase.rows_of(split)["loss"].to_numpy(dtype=float)
            if len(losses):
                _line(axes, phase.epochs(split), losses, INK, style)
                ends[split] = losses[-1]
    names = {"train": "training", "validation": "validation"}
    axes.set_ylim(*axes.get_ylim())
    label_line_ends(
        axes, phases[-1].end, list(ends.values()), [names[s] for s in ends], [INK] * len(ends)
    )


def _divide_phases(axes: Axes, phases: list[_PhaseMetrics]) -> None:
    for phase in phases[1:]:
        axes.axvline(phase.offset + 0.5, color=INK, linewidth=1)


def _name_phases(axes: Axes, phases: list[_PhaseMetrics]) -> None:
    for phase in phases:
        axes.annotate(
            PHASE_NAMES[phase.name],
            (phase.offset + 0.5 if phase.offset else axes.get_xlim()[0], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=9,
            color=MUTED,
        )


def _mark_learning_rate(axes: Axes, phases: list[_PhaseMetrics]) -> None:
    """Marks epochs at which the learning rate falls to half or less."""
    for phase in phases:
        rates = phase.rows_of("train")["learning_rate"].to_numpy(dtype=float)
        drops = np.flatnonzero(rates[1:] <= 0.5 * rates[:-1]) + 1
        if len(drops) > MAX_DROPS:
            continue
        for drop in drops:
            x = phase.epochs("train")[drop] - 0.5
            axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.annotate(
                f"learning rate {rates[drop]:.2g}",
                (x, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                rotation=90,
                fontsize=8,
                color=MUTED,
                path_effects=white_outline(),
            )
