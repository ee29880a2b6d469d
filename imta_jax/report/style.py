"""What all figures share: one color per exit, quiet axes, labels instead of legends.

Figures are made through matplotlib's object interface and styled piece by piece: no pyplot, no
global settings, so that a server's threads and a notebook can draw at the same time.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

INK = "#1f2328"
MUTED = "#667080"
RULE = "#dfe3e8"
ADAPTIVE = "#0b7a75"
QUANTITY = "#5b7fa6"
WRONG = "#c0392b"
DPI = 160
MILLION = 1e6
LUMA = np.array([0.299, 0.587, 0.114])


def exit_colors(count: int) -> list[str]:
    """One color per exit, light and warm for the earliest, dark and cold for the last.

    The ramp falls evenly in lightness, so it also reads without color vision or in gray.
    """
    return [to_hex(matplotlib.colormaps["plasma"](x)) for x in np.linspace(0.80, 0.06, count)]


def text_color_on(color: str) -> str:
    """Black or white, whichever can be read on a background of this color."""
    return INK if np.array(matplotlib.colors.to_rgb(color)) @ LUMA > 0.55 else "white"


def numbered_circle(
    axes: Axes, number: int, x: float, y: float, color: str, size: float = 14
) -> None:
    """A circle with a number in it, `size` points wide, at (x, y) of the data."""
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
    """The color, darkened where it is too light to be that of a text on white."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return to_hex(rgb * min(1.0, 0.55 / float(rgb @ LUMA)))


def new_figure(width: float, height: float, title: str, *, placed: bool = False) -> Figure:
    """An empty figure of a size in inches, its title (the finding) at the top left.

    With `placed` the caller places all axes itself: below the title's 0.4 inches, which are the
    same at every height of the figure.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    position = {"x": 0.012}
    if placed:
        position["y"] = 1 - 0.1 / height
    else:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    # Titles may hold class names, in which a dollar sign is no mathematics.
    figure.suptitle(
        title, **position, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False
    )
    return figure


def style_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
    """Names the axes and takes away all ink that carries no data; `grid` is "x", "y" or ""."""
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
    """Takes away the y ticks above 100%, which room for labels may have brought."""
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])


def white_outline() -> list[withStroke]:
    """A white outline that keeps a text readable where it crosses a line."""
    return [withStroke(linewidth=3, foreground="white")]


def format_count(count: float) -> str:
    """A count in thousands or millions with about three digits, e.g. "187 k", "12.3 M"."""
    if count < MILLION:
        return f"{count / 1000:.0f} k"
    value = count / MILLION
    if value >= 100:
        return f"{value:,.0f} M"
    return f"{value:.1f} M" if value >= 10 else f"{value:.2f} M"


def format_signed(points: float, digits: int = 1) -> str:
    """A change with its sign, e.g. "+0.4", "−1.2"; what rounds to nothing is "+0.0"."""
    points = round(points, digits) + 0.0  # adding zero takes the sign off a negative one
    return f"{points:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def truncate(text: str, length: int) -> str:
    """The text, cut to a length with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun, e.g. "1 image", "2,000 images"; the plural adds an s if not given."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def quote_names(names: Sequence[str], most: int, length: int) -> str:
    """Names in quotes, each cut to a length: "“a” and “b”", or "“a”, “b” and 7 more" of many."""
    quoted = [f"“{truncate(name, length)}”" for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(quoted)} and {len(names) - most:,} more"
    return " and ".join([", ".join(quoted[:-1]), *quoted[-1:]] if len(quoted) > 1 else quoted)


def separate_labels(positions: Sequence[float], gap: float) -> np.ndarray:
    """Moves positions apart until neighbors are a gap away from each other, keeping their order.

    Args:
      positions: [n], where labels would like to be.
      gap: the least distance between two labels, in the same unit.

    Returns:
      [n] float positions; unchanged where there was room.
    """
    wanted = np.asarray(positions, dtype=float)
    # Labels that touch move as one group, around the mean of where they want to be.
    groups: list[list[int]] = []
    centers: list[float] = []
    for index in np.argsort(wanted, kind="stable"):
        groups.append([int(index)])
        centers.append(wanted[index])
        while len(groups) > 1 and (
            centers[-1] - centers[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
            centers[-2:] = [float(wanted[groups[-1]].mean())]
    placed = wanted.copy()
    for group, center in zip(groups, centers, strict=True):
        placed[group] = center + gap * (np.arange(len(group)) - (len(group) - 1) / 2)
    return placed


def label_line_ends(
    axes: Axes, x: float, heights: Sequence[float], texts: Sequence[str], colors: Sequence[str]
) -> None:
    """Writes each line's name at its right end, apart from each other; set the y limits first."""
    low, high = axes.get_ylim()
    inches = axes.figure.get_figheight() * axes.get_position().height
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
