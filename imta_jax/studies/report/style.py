"""Shared parts of the studies' figures: colors of variants, provenance line, legend."""

import textwrap
from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from imta_jax.report.style import ADAPTIVE, INK, MUTED, QUANTITY, WRONG
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std

# The paper's colors: the baseline is red, the full method black.
BASELINE, FULL = WRONG, "#111111"
GE, ISC, OFA = ADAPTIVE, QUANTITY, "#b35c00"
SINGLE = {frozenset({"GE"}): GE, frozenset({"ISC"}): ISC, frozenset({"OFA"}): OFA}
OTHERS = ("#7b4fa3", "#8a8d3c", "#c06f9c", "#4d6b8a", "#9c6b4f", MUTED)
CHARACTERS_PER_INCH = 19.3


def variant_colors(study: StudyRecord) -> dict[str, str]:
    """A color for each variant, by name.

    Plain variants are red and full ones black, for every network. A single technique has its own
    color. Other variants take the next unused color.
    """
    colors, used = {}, Counter()
    for variant in study.variants:
        key = (variant.network, variant.techniques)
        color = {frozenset(): BASELINE, **SINGLE}.get(variant.techniques)
        color = FULL if variant.is_full else color
        if color is None or used[key]:
            color = OTHERS[used["others"] % len(OTHERS)]
            used["others"] += 1
        used[key] += 1
        colors[variant.name] = color
    return colors


def add_provenance(figure: Figure, study: StudyRecord, note: str = "") -> None:
    """Writes the study's provenance in small type below all axes, after a note."""
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [line for text in (note, study.provenance()) for line in textwrap.wrap(text, width)]
    text = figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7, color=MUTED)
    text.set_parse_math(False)


def draw_band(
    axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str, **line: object
) -> Line2D:
    """Draws the mean over seeds as a line in a band of one standard deviation.

    Args:
      axes: axes to draw into.
      x: positions [n].
      values: values [seeds, n]; a single seed has no band.
      color: color of line and band.
      label: label of the line in the legend.
      **line: further properties of the line.

    Returns:
      The line.
    """
    mean, deviation = mean_and_std(values)
    if np.isfinite(deviation).any():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0, zorder=2)
    properties = {"linewidth": 1.8, "zorder": 3, **line}
    return axes.plot(x, mean, color=color, label=label, **properties)[0]


def add_legend(axes: Axes, **properties: object) -> Legend | None:
    """Adds a legend without a frame, in small type; does nothing without labeled lines."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return None
    default = {"loc": "best", "fontsize": 8, "frameon": False, "labelcolor": INK}
    legend = axes.legend(handles, labels, **{**default, **properties})
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def add_missing_to_legend(
    axes: Axes, study: StudyRecord, variant: VariantRecord, color: str
) -> None:
    """Adds a variant without finished runs to the legend, for example "OFA (not run)"."""
    label = f"{variant.label} ({study.status(variant)})"
    axes.plot([], [], color=color, linestyle=(0, (1, 2)), linewidth=1.4, label=label)


def draw_placeholder(axes: Axes, reason: str, *, keep_x: bool = False) -> None:
    """Writes into empty axes why they are empty and hides their ticks.

    `keep_x` keeps the tick labels below, which other axes share.
    """
    axes.tick_params(labelleft=False, labelbottom=keep_x)
    axes.grid(False)
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)
