"""The figure of a training: accuracy and loss over the epochs of both phases."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imta_jax.report.run.record import PHASES, RunRecord
from imta_jax.report.style import (
    INK,
    MUTED,
    exit_colors,
    format_signed,
    label_line_ends,
    new_figure,
    percentage_ticks,
    style_axes,
    white_outline,
)

PHASE_NAMES = {"phase_one": "phase I: the whole network", "phase_two": "phase II: last layers only"}
MOST_DROPS = 4


@dataclass(frozen=True)
class _Stretch:
    """One phase on the shared axis of epochs: its rows, and the epochs that came before it."""

    name: str
    rows: pd.DataFrame
    offset: int

    def of(self, split: str) -> pd.DataFrame:
        return self.rows[self.rows["split"] == split]

    def epochs(self, split: str) -> np.ndarray:
        return self.offset + self.of(split)["epoch"].to_numpy()

    @property
    def end(self) -> int:
        return self.offset + int(self.rows["epoch"].max())


def figure_training(run: RunRecord) -> Figure:
    """Top-1 per exit and loss over epochs: validation in strong, training in faint lines.

    Reads `run.metrics`; returns the figure.

    Raises:
      ValueError: the run logged no metrics.
    """
    if run.metrics is None:
        raise ValueError(f"{run.workdir} has no metrics.jsonl to draw")
    stretches = _stretches(run.metrics)
    figure = new_figure(8.4, 6.2, _finding(stretches))
    accuracy, loss = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _draw_accuracy(accuracy, stretches, exit_colors(run.num_exits))
    _draw_loss(loss, stretches)
    style_axes(accuracy, y="top-1 (%)")
    percentage_ticks(accuracy)
    style_axes(loss, x="epoch", y="loss")
    for axes in (accuracy, loss):
        axes.set_xlim(0 if stretches[-1].end > 1 else 0.5, stretches[-1].end + 0.5)
        _divide_phases(axes, stretches)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _mark_learning_rate(accuracy, stretches)
    _name_phases(accuracy, stretches)
    return figure


def _stretches(metrics: pd.DataFrame) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for name in PHASES:
        rows = metrics[metrics["phase"] == name]
        if len(rows):
            stretches.append(_Stretch(name, rows, stretches[-1].end if stretches else 0))
    return stretches


def _final(stretch: _Stretch) -> np.ndarray:
    """Top-1 per exit when the phase ended, on validation images where they were logged."""
    validation = stretch.of("validation")
    rows = validation if len(validation) else stretch.rows
    return np.asarray(rows["top1_per_exit"].iloc[-1], dtype=float)


def _finding(stretches: list[_Stretch]) -> str:
    final = _final(stretches[-1])
    if len(stretches) == 1:
        epochs = f"{stretches[-1].end} epoch{'s' * (stretches[-1].end > 1)}"
        ends = f"{final[0]:.1f}% at exit 1, {final[-1]:.1f}% at exit {len(final)}"
        return f"Validation top-1 after {epochs}: {ends}"
    change = final - _final(stretches[0])
    return (
        f"Phase II moves the exits' validation top-1 by {format_signed(change.min())} to "
        f"{format_signed(change.max())} points"
    )


def _draw_accuracy(axes: Axes, stretches: list[_Stretch], colors: list[str]) -> None:
    for stretch in stretches:
        for split, style in (("train", {"linewidth": 0.9, "alpha": 0.45}), ("validation", {})):
            if not len(stretch.of(split)):
                continue
            top1 = np.stack(stretch.of(split)["top1_per_exit"].to_list())
            for exit_, color in enumerate(colors):
                _line(axes, stretch.epochs(split), top1[:, exit_], color, style)
    axes.set_ylim(*_accuracy_limits(stretches))
    final = _final(stretches[-1])
    names = [f"exit {i + 1}  {value:.1f}%" for i, value in enumerate(final)]
    label_line_ends(axes, stretches[-1].end, final, names, colors)


def _line(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str, style: dict[str, float]
) -> None:
    """A line; of a few epochs also the points, since one point alone makes no line."""
    marker = "o" if len(epochs) < 6 else ""
    axes.plot(
        epochs, values, marker=marker, markersize=4, color=color, **{"linewidth": 1.7, **style}
    )


def _accuracy_limits(stretches: list[_Stretch]) -> tuple[float, float]:
    """Leaves out the first tenth of the epochs, in which accuracy jumps and says little."""
    start = 0.1 * stretches[-1].end
    values = np.concatenate(
        [
            np.stack(s.rows["top1_per_exit"].to_list())[s.offset + s.rows["epoch"] > start].ravel()
            for s in stretches
        ]
    )
    margin = max(0.06 * (values.max() - values.min()), 0.5)
    return values.min() - margin, values.max() + 2.2 * margin


def _draw_loss(axes: Axes, stretches: list[_Stretch]) -> None:
    ends: dict[str, float] = {}
    for stretch in stretches:
        for split, style in (("train", {"linewidth": 1.0, "alpha": 0.55}), ("validation", {})):
            losses = stretch.of(split)["loss"].to_numpy(dtype=float)
            if len(losses):
                _line(axes, stretch.epochs(split), losses, INK, style)
                ends[split] = losses[-1]
    names = {"train": "training", "validation": "validation"}
    axes.set_ylim(*axes.get_ylim())
    label_line_ends(
        axes, stretches[-1].end, list(ends.values()), [names[s] for s in ends], [INK] * len(ends)
    )


def _divide_phases(axes: Axes, stretches: list[_Stretch]) -> None:
    for stretch in stretches[1:]:
        axes.axvline(stretch.offset + 0.5, color=INK, linewidth=1)


def _name_phases(axes: Axes, stretches: list[_Stretch]) -> None:
    for stretch in stretches:
        axes.annotate(
            PHASE_NAMES[stretch.name],
            (stretch.offset + 0.5 if stretch.offset else axes.get_xlim()[0], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=9,
            color=MUTED,
        )


def _mark_learning_rate(axes: Axes, stretches: list[_Stretch]) -> None:
    """Marks where the learning rate falls to half or less; a smooth schedule has no such places."""
    for stretch in stretches:
        rates = stretch.of("train")["learning_rate"].to_numpy(dtype=float)
        drops = np.flatnonzero(rates[1:] <= 0.5 * rates[:-1]) + 1
        if len(drops) > MOST_DROPS:
            continue
        for drop in drops:
            x = stretch.epochs("train")[drop] - 0.5
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
