"""Figure of the images per class: a bar per class, or a curve if there are many classes."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imta_jax.report.data.data_record import SPLITS, DataRecord
from imta_jax.report.style import (
    INK,
    QUANTITY,
    WRONG,
    new_figure,
    pluralize,
    quote_names,
    style_axes,
    truncate,
)

MAX_BARS = 24
MAX_NAMED = 6
NAME_LENGTH = 16
MAX_NAME_LENGTH = 44
LINE_LENGTH = 84
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def figure_class_balance(record: DataRecord) -> Figure:
    """Draws the images per class in each split; classes without images are named in red.

    Up to 24 classes are drawn as bars, one column per split. More classes are drawn as a falling
    curve per split, with labels for the largest and smallest classes.
    """
    draw = _figure_bars if record.num_classes <= MAX_BARS else _figure_curves
    return draw(record, balance_title(record))


def balance_title(record: DataRecord) -> str:
    """One line on the distribution of the training images over the classes."""
    counts = record.splits["train"].per_class
    low, high = int(counts.min()), int(counts.max())
    if low == 0:
        return missing_classes(record, "train")
    if low == high:
        return f"Every class has {pluralize(low, 'training image')}"
    smallest, largest = (
        truncate(record.class_names[k], NAME_LENGTH) for k in (counts.argmin(), counts.argmax())
    )
    return f"“{smallest}” has {pluralize(low, 'training image')}, “{largest}” {high:,}"


def missing_classes(record: DataRecord, split: str) -> str:
    """One line on the classes without images in a split; requires at least one."""
    missing = record.classes_without(split)
    if len(missing) == 1:
        return f"“{truncate(missing[0], MAX_NAME_LENGTH)}” has no {SPLITS[split]} image"
    return f"{len(missing):,} of {record.num_classes:,} classes have no {SPLITS[split]} image"


def _figure_bars(record: DataRecord, title: str) -> Figure:
    figure = new_figure(8.4, 1.0 + 0.3 * max(record.num_classes, 3), title)
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for axes, split in zip(panels, SPLITS, strict=True):
        _draw_bars(axes, record.splits[split].per_class)
        style_axes(axes, title=_panel_title(record, split), grid="")
        axes.spines["bottom"].set_visible(False)
    rows = range(record.num_classes)
    names = [truncate(name, 22) for name in record.class_names]
    panels[0].set_yticks(rows, names, parse_math=False)
    panels[0].set_ylim(record.num_classes - 0.4, -0.6)
    for row in np.flatnonzero(record.splits["train"].per_class == 0):
        panels[0].get_yticklabels()[row].set(color=WRONG, fontweight="bold")
    return figure


def _draw_bars(axes: Axes, counts: np.ndarray) -> None:
    """Draws a bar per class, labeled with its count instead of an axis."""
    axes.barh(np.arange(len(counts)), counts, color=QUANTITY, height=0.72)
    axes.set(xlim=(0, 1.3 * max(counts.max(), 1)), xticks=())
    for row, count in enumerate(counts):
        axes.annotate(
            _count(count),
            (count, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK if count else WRONG,
            fontweight="normal" if count else "bold",
        )


def _figure_curves(record: DataRecord, title: str) -> Figure:
    figure = new_figure(8.4, 6.4, title)
    panels = figure.subplots(len(SPLITS), 1, sharex=True)
    for axes, split in zip(panels, SPLITS, strict=True):
        _draw_curve(axes, record, split)
        style_axes(axes, title=_panel_title(record, split), y="images per class")
    panels[-1].set_xlabel("classes, from most to fewest images of the split")
    panels[0].set_xlim(0, record.num_classes)
    figure.align_ylabels(panels)
    return figure


def _draw_curve(axes: Axes, record: DataRecord, split: str) -> None:
    counts = record.splits[split].per_class
    falling = np.sort(counts)[::-1]
    axes.stairs(falling, fill=True, color=QUANTITY, alpha=0.35)
    axes.stairs(falling, baseline=None, color=QUANTITY, linewidth=1.6)
    seen = int((counts > 0).sum())
    if seen < len(counts):
        # Classes without images have no height; a line on the axis makes them visible.
        axes.plot([seen, len(counts)], [0, 0], color=WRONG, linewidth=5, solid_capstyle="butt")
    # The ticks are set before the limits, which leave space for labels.
    ticks = MaxNLocator(nbins=4, integer=True).tick_values(0, max(counts.max(), 1))
    axes.set_yticks([tick for tick in ticks if tick <= max(counts.max(), 1)])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _name_ends(axes, record, counts)


def _name_ends(axes: Axes, record: DataRecord, counts: np.ndarray) -> None:
    """Labels the largest class above the curve's start, the smallest ones above its end."""
    low, high = int(counts.min()), int(counts.max())
    top = max(high, 1)
    if low == high:
        axes.set_ylim(0, 1.3 * top)
        color = INK if high else WRONG
        _label(axes, (0, 1.06 * top), f"every class: {_count(high)}", "left", color)
        return
    largest = quote_names(_classes_of(record, counts, high), 1, NAME_LENGTH)
    _label(axes, (0, 1.06 * top), f"{largest}: {high:,}", "left", INK)
    smallest = quote_names(_classes_of(record, counts, low), MAX_NAMED, NAME_LENGTH)
    text = f"{smallest}: {low:,}" if low else f"none: {smallest}"
    lines = textwrap.wrap(_unbroken(text), LINE_LENGTH, break_on_hyphens=False)
    # The labels of start and end are on different lines, so that they cannot overlap.
    axes.set_ylim(0, top * (1.22 + 0.2 * len(lines)))
    color = INK if low else WRONG
    _label(axes, (len(counts), 1.28 * top), "\n".join(lines), "right", color)
    axes.plot([len(counts)] * 2, [low, 1.25 * top], color=color, linewidth=0.8, clip_on=False)


def _count(count: int) -> str:
    return f"{count:,}" if count else "none"


def _classes_of(record: DataRecord, counts: np.ndarray, count: int) -> list[str]:
    return [record.class_names[k] for k in np.flatnonzero(counts == count)]


def _unbroken(text: str) -> str:
    """The text with line breaks allowed only between two names."""
    tied = text.replace(" ", NO_BREAK_SPACE)
    return tied.replace(f"”,{NO_BREAK_SPACE}“", "”, “")


def _label(axes: Axes, point: tuple[float, float], text: str, side: str, color: str) -> None:
    axes.text(*point, text, ha=side, va="bottom", fontsize=9, color=color, parse_math=False)


def _panel_title(record: DataRecord, split: str) -> str:
    return f"{SPLITS[split]}: {pluralize(record.splits[split].examples, 'image')}"
