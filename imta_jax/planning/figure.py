"""The figure of a sweep: hours, throughput and memory against the batch per chip."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator

from imta_jax.planning.sweep import SweepRow
from imta_jax.report.style import MUTED, new_figure, style_axes
from imta_jax.runtime.files import replacing


def write_sweep_figure(rows: Sequence[SweepRow], path: Path) -> Path:
    """Draws a sweep, in the format of the suffix of its path.

    Args:
      rows: return value of `sweep`.
      path: the file.

    Returns:
      The path.
    """
    figure = new_figure(10.5, 4.0, "Estimates for chips that were not used")
    has_prices = any(row.price for row in rows)
    cost, label = (_price, "price of the run") if has_prices else (_hours, "hours of the run")
    panels: list[tuple[Callable[[SweepRow], float | None], str, bool]] = [
        (lambda row: row.images_per_second, "images/s in phase I", True),
        (cost, label, True),
        (lambda row: (row.memory_bytes or 0) / 1e9, "memory per chip, GB", False),
    ]
    for axes, (value, title, logarithmic) in zip(figure.subplots(1, 3), panels, strict=True):
        _draw(axes, rows, value)
        style_axes(axes, title=title, x="images per chip")
        axes.set_xscale("log", base=2)
        images = sorted({row.images_per_chip for row in rows})
        axes.set_xticks(images, [str(count) for count in images], minor=False)
        axes.minorticks_off()
        if logarithmic:
            _set_log_scale(axes)
        else:
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    handles, labels = figure.get_axes()[0].get_legend_handles_labels()
    style = {"fontsize": 9, "frameon": False, "labelcolor": MUTED}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), **style)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
    return path


def _set_log_scale(axes: Axes) -> None:
    """A logarithmic y axis with the ticks 1, 2 and 5 as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.minorticks_off()


def _hours(row: SweepRow) -> float | None:
    return row.hours.expected if row.hours else None


def _price(row: SweepRow) -> float | None:
    return row.price.expected if row.price else None


def _draw(axes: Axes, rows: Sequence[SweepRow], value: Callable[[SweepRow], float | None]) -> None:
    """A line per topology; programs that do not fit are left out."""
    names = list(dict.fromkeys(row.topology for row in rows))
    for i, name in enumerate(names):
        color = to_hex(matplotlib.colormaps["viridis"](0.9 * i / max(len(names) - 1, 1)))
        of_topology = [row for row in rows if row.topology == name and row.fits]
        points = [(row.images_per_chip, y) for row in of_topology if (y := value(row))]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=name, markersize=4)
