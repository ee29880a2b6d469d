"""What the figures of studies share: an arm's color, the line of facts beneath, the legend."""

import textwrap
from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from imta_jax.report.style import ADAPTIVE, INK, MUTED, QUANTITY, WRONG
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std

# The paper's own colors: the baseline is red, the full method black.
BASELINE, FULL = WRONG, "#111111"
GE, ISC, OFA = ADAPTIVE, QUANTITY, "#b35c00"
SINGLE = {frozenset({"GE"}): GE, frozenset({"ISC"}): ISC, frozenset({"OFA"}): OFA}
OTHERS = ("#7b4fa3", "#8a8d3c", "#c06f9c", "#4d6b8a", "#9c6b4f", MUTED)
CHARACTERS_PER_INCH = 19.3


def arm_colors(study: StudyRecord) -> dict[str, str]:
    """A color for each arm's name.

    Plain arms are red and full ones black whatever their network; a technique by itself has its
    own color, and what is left takes the next free one.
    """
    colors, used = {}, Counter()
    for arm in study.arms:
        key = (arm.network, arm.techniques)
        fixed = {frozenset(): BASELINE, **SINGLE}.get(arm.techniques)
        fixed = FULL if arm.is_full else fixed
        if fixed is None or used[key]:
            fixed = OTHERS[used["others"] % len(OTHERS)]
            used["others"] += 1
        used[key] += 1
        colors[arm.name] = fixed
    return colors


def mark_figure(figure: Figure, study: StudyRecord, more: str = "") -> None:
    """Writes a study's facts in small type beneath all axes, and `more` on a line of its own."""
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [line for text in (more, study.mark()) for line in textwrap.wrap(text, width)]
    text = figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7, color=MUTED)
    text.set_parse_math(False)


def draw_band(
    axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str, **line: object
) -> Line2D:
    """A line through the means over seeds, in a band of one standard deviation.

    Args:
      axes: where to draw.
      x: [n].
      values: [seeds, n].
      color: of line and band.
      label: of the line, for the legend.
      **line: further properties of the line.

    Returns:
      The line; with a single seed there is no band.
    """
    mean, deviation = mean_and_std(values)
    if np.isfinite(deviation).any():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0, zorder=2)
    properties = {"linewidth": 1.8, "zorder": 3, **line}
    return axes.plot(x, mean, color=color, label=label, **properties)[0]


def add_legend(axes: Axes, **where: object) -> Legend | None:
    """A legend without a frame, in small type; none where nothing is named."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return None
    properties = {"loc": "best", "fontsize": 8, "frameon": False, "labelcolor": INK, **where}
    legend = axes.legend(handles, names, **properties)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def name_absent(axes: Axes, study: StudyRecord, arm: Arm, color: str) -> None:
    """Gives an arm without a run its place in the legend: "OFA (not run)"."""
    label = f"{arm.label} ({study.state(arm)})"
    axes.plot([], [], color=color, linestyle=(0, (1, 2)), linewidth=1.4, label=label)


def say_empty(axes: Axes, reason: str, *, keep_x: bool = False) -> None:
    """Says in the middle of empty axes why they are empty; their ticks would mean nothing.

    With `keep_x` the ticks below stay: they belong to other axes too.
    """
    axes.tick_params(labelleft=False, labelbottom=keep_x)
    axes.grid(False)
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)
