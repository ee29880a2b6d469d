"""Shared style of all figures: one color per exit, plain axes, direct labels, text formats.

Figures are created through matplotlib's object interface, without pyplot and global settings, so
that several threads can draw at the same time.
"""

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from imta_jax.runtime import progress_bar

INK = "#1f2328"
MUTED = "#667080"
RULE = "#dfe3e8"
ADAPTIVE = "#0b7a75"
QUANTITY = "#5b7fa6"
WRONG = "#c0392b"
DPI = 160
MILLION = 1e6
# Text inside colored areas; almost `INK` and white, and unchanged in dark mode.
ON_LIGHT, ON_DARK = "#1f2329", "#fffffe"
LUMA = np.array([0.299, 0.587, 0.114])


def exit_colors(count: int) -> list[str]:
    """One color per exit, from light and warm for the first to dark and cold for the last.

    Lightness falls evenly, so the order is visible in grayscale and with color blindness.
    """
    return [to_hex(matplotlib.colormaps["plasma"](x)) for x in np.linspace(0.80, 0.06, count)]


def text_color_on(color: str) -> str:
    """Black or white, whichever is readable on a background of this color."""
    return ON_LIGHT if np.array(to_rgb(color)) @ LUMA > 0.55 else ON_DARK


def numbered_circle(
    axes: Axes, number: int, x: float, y: float, color: str, size: float = 14
) -> None:
    """Draws a circle with a number at data coordinates (x, y); `size` is its width in points."""
    axes.plot(x, y, "o", color=color, markersize=size, markeredgecolor="white", zorder=5)
    axes.annotate(
        str(number),
        (x, y),
        ha="center",
        va="center_baseline",
        fontsize=0.6 * size + 0.5,
        fontweight="bold",
        color=text_color_on(color),
        zorder=6,
    )


def darken_for_text(color: str) -> str:
    """The color, darkened if it is too light for text on a white background."""
    rgb = np.array(to_rgb(color))
    return to_hex(tuple(rgb * min(1.0, 0.55 / float(rgb @ LUMA))))


def new_figure(width: float, height: float, title: str, *, manual_layout: bool = False) -> Figure:
    """An empty figure with a title at the top left.

    Args:
      width: width in inches.
      height: height in inches.
      title: the main result that the figure shows.
      manual_layout: whether the caller places all axes. The title then takes the top 0.4 inches.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    position = {"x": 0.012}
    if manual_layout:
        position["y"] = 1 - 0.1 / height
    else:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    # Titles may contain class names; a dollar sign in them must not start math text.
    figure.suptitle(
        title, **position, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False
    )
    return figure


def style_axes(
    axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: Literal["x", "y", ""] = "y"
) -> None:
    """Sets titles and labels and removes spines and ticks; `grid` is "x", "y" or ""."""
    axes.set_title(title, loc="left", fontsize=10, color=MUTED, pad=9)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.8)


def percentage_ticks(axes: Axes) -> None:
    """Removes y ticks above 100%, which appear where limits leave space for labels."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])


def white_outline() -> list[withStroke]:
    """A path effect that keeps text readable where it crosses a line."""
    return [withStroke(linewidth=3, foreground="white")]


def format_count(count: float) -> str:
    """A count in thousands or millions with about three digits: "187 k", "12.3 M"."""
    if count < MILLION:
        return f"{count / 1000:.0f} k"
    value = count / MILLION
    if value >= 100:
        return f"{value:,.0f} M"
    return f"{value:.1f} M" if value >= 10 else f"{value:.2f} M"


def format_percentage(percentage: float) -> str:
    """An accuracy or calibration error in percent, without the sign: "86.8"."""
    return f"{percentage:.1f}"


def format_share(share: float) -> str:
    """A fraction as a percentage with about two digits: "9.2%", "28%", "100%"."""
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def format_signed(points: float, digits: int = 1) -> str:
    """A difference with its sign: "+0.4", "−1.2"; values that round to zero are "+0.0"."""
    points = round(points, digits) + 0.0  # Adding zero turns -0.0 into 0.0.
    return f"{points:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_duration(seconds: float) -> str:
    """A time with about two digits: "0.21 s", "42 s", "3 min 05 s", "11 h 40 min"."""
    return f"{seconds:.2g} s" if seconds < 9.5 else progress_bar.format_duration(seconds)


def truncate(text: str, length: int) -> str:
    """Shortens a text to a length, with an ellipsis at the end."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 image", "2,000 images"; by default the plural adds an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def quote_names(names: Sequence[str], most: int, length: int) -> str:
    """Quotes and joins names, each truncated: "“a” and “b”", or "“a”, “b” and 7 more"."""
    quoted = [f"“{truncate(name, length)}”" for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(quoted)} and {len(names) - most:,} more"
    return " and ".join([", ".join(quoted[:-1]), *quoted[-1:]] if len(quoted) > 1 else quoted)


def separate_labels(positions: Sequence[float], gap: float) -> np.ndarray:
    """Moves positions apart until neighbors have a minimum distance; keeps their order.

    Args:
      positions: preferred positions of labels, [n].
      gap: minimum distance between two labels, in the same unit.

    Returns:
      Positions [n]; those without close neighbors are unchanged.
    """
    preferred = np.asarray(positions, dtype=float)
    # Labels that touch form one group, centered on the mean of their preferred positions.
    groups: list[list[int]] = []
    centers: list[float] = []
    for index in np.argsort(preferred, kind="stable"):
        groups.append([int(index)])
        centers.append(float(preferred[index]))
        while len(groups) > 1 and (
            centers[-1] - centers[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
            centers[-2:] = [float(preferred[groups[-1]].mean())]
    placed = preferred.copy()
    for group, center in zip(groups, centers, strict=True):
        placed[group] = center + gap * (np.arange(len(group)) - (len(group) - 1) / 2)
    return placed


def label_line_ends(
    axes: Axes, x: float, heights: Sequence[float], texts: Sequence[str], colors: Sequence[str]
) -> None:
    """Labels each line at its right end without overlaps; set the y limits before the call."""
    low, high = axes.get_ylim()
    inches = axes.bbox.height / axes.figure.dpi
    gap = (high - low) * 0.16 / inches
    for height, text, color in zip(separate_labels(heights, gap), texts, colors, strict=True):
        axes.annotate(
            text,
            (x, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=darken_for_text(color),
            annotation_clip=False,
        )
