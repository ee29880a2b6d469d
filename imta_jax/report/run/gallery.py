"""Figure of easy images, which leave at the first exit, and hard images, which need the last."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import (
    INK,
    RULE,
    WRONG,
    darken_for_text,
    exit_colors,
    format_count,
    new_figure,
    truncate,
)

COLUMNS = 4
MAX_IMAGES = 12
NAME_LENGTH = 14


def figure_gallery(run: RunRecord) -> Figure:
    """Draws images that use the first exit next to images that need the last exit.

    Reads `run.gallery` (uint8 images [M, H, W, C], C = 1 or 3) and `run.exits`. Draws at most
    twelve images per side.

    Raises:
      ValueError: the run has no gallery.
    """
    first = _gallery(run)["first"].astype(bool)
    sides = [np.flatnonzero(first)[:MAX_IMAGES], np.flatnonzero(~first)[:MAX_IMAGES]]
    rows = max(1, -(-max(map(len, sides)) // COLUMNS))
    factor = run.full_macs / run.exits["macs"].iloc[0]
    title = f"Images on the right cost {factor:.1f} times as much as images on the left"
    figure = new_figure(8.8, 0.8 + 1.5 * rows, title)
    # One grid aligns the rows of both sides; its middle column separates them.
    widths = [1.0] * COLUMNS + [0.15] + [1.0] * COLUMNS
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    _draw_side(grid[:, :COLUMNS], run, sides[0], "use", exit_=0)
    _draw_side(grid[:, -COLUMNS:], run, sides[1], "need", exit_=run.num_exits - 1)
    return figure


def _gallery(run: RunRecord) -> dict[str, np.ndarray]:
    return run.require("gallery", "evaluation/gallery.npz")


def _draw_side(
    grid: np.ndarray, run: RunRecord, members: np.ndarray, verb: str, exit_: int
) -> None:
    macs = format_count(run.exits["macs"].iloc[exit_])
    heading = grid[0, 0].annotate(
        f"{verb} exit {exit_ + 1}: {macs} multiply-adds",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=10.5,
        fontweight="bold",
        color=darken_for_text(exit_colors(run.num_exits)[exit_]),
    )
    # The heading spans several columns and must not widen the first one. A blank title reserves
    # its height.
    heading.set_in_layout(False)
    grid[0, 0].set_title(" ", fontsize=10.5, pad=8)
    for axes, member in zip(grid.flat, members, strict=False):
        _draw_image(axes, run, int(member))


def _draw_image(axes: Axes, run: RunRecord, member: int) -> None:
    image = _gallery(run)["images"][member]
    gray = image.shape[-1] == 1
    axes.set_axis_on()
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
    axes.set(xticks=(), yticks=())
    _caption(axes, run, member)


def _caption(axes: Axes, run: RunRecord, member: int) -> None:
    """Writes the true class below the image; a wrong prediction is framed and named."""
    label, prediction = (int(_gallery(run)[name][member]) for name in ("label", "prediction"))
    confidence = f"{_gallery(run)['confidence'][member]:.0%}"
    correct = label == prediction
    wrong = f"✗ {truncate(run.class_name(prediction), NAME_LENGTH - 2)}\n{confidence}"
    # Both texts have two lines, so that all rows have the same height.
    result = f"✓ {confidence}\n " if correct else wrong
    axes.spines[:].set(color=RULE if correct else WRONG, linewidth=0.8 if correct else 2.2)
    # A dollar sign in a class name must not start math text.
    axes.set_xlabel(
        f"{truncate(run.class_name(label), NAME_LENGTH)}\n{result}",
        fontsize=8,
        color=INK if correct else WRONG,
        parse_math=False,
    )
