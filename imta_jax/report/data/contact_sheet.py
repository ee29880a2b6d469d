"""Figure of a contact sheet: images of a split with the names of their classes.

Images are not scaled by matplotlib. They are composed into one array in pixels of the figure, with
an integer scale, so that the sheet is as sharp as its images.
"""

import textwrap
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from imta_jax.report.data.data_record import SPLITS, DataRecord
from imta_jax.report.style import DPI, INK, MUTED, RULE, new_figure, truncate

MAX_IMAGES = 48
WIDTH_PIXELS = 1408  # 8.8 inches, as in the other figures.
MARGIN_PIXELS = 16
GAP_PIXELS = 12
FRAME_PIXELS = 2
NAME_PIXELS = 34
IDEAL_SIDE_PIXELS = 160
COLUMNS = (6, 8)
MAX_NAME_LENGTH = 40
NAME_POINTS = 8
TITLE_INCHES = 0.4
LINE_INCHES = 0.17
CHARACTERS_PER_INCH = 14


@dataclass(frozen=True)
class SheetLayout:
    """Positions of the images of a sheet; all lengths in pixels of the figure.

    Attributes:
      scale: figure pixels per image pixel, an integer.
      side: (height, width) of a drawn image.
      columns: images per row.
      rows: number of rows.
      pitch: (vertical, horizontal) distance between the corners of neighboring images.
      width: width of the sheet with margins.
    """

    scale: int
    side: tuple[int, int]
    columns: int
    rows: int
    pitch: tuple[int, int]
    width: int

    @property
    def height(self) -> int:
        """Height of the sheet with names."""
        return self.rows * self.pitch[0]

    def corner(self, index: int) -> tuple[int, int]:
        """(row, column) of the upper left pixel of an image, from 0."""
        row, column = divmod(index, self.columns)
        inset = (self.pitch[1] - GAP_PIXELS - self.side[1]) // 2
        top, left = FRAME_PIXELS + row * self.pitch[0], MARGIN_PIXELS + column * self.pitch[1]
        return top, left + inset


def sheet_layout(count: int, height: int, width: int) -> SheetLayout:
    """Lays out `count` images of a size in pixels: small ones enlarged, six to eight per row."""
    scale = max(1, round(IDEAL_SIDE_PIXELS / max(height, width)))
    side = scale * height, scale * width
    cell_width = side[1] + GAP_PIXELS
    available = WIDTH_PIXELS - 2 * MARGIN_PIXELS
    columns = min(max(round(available / cell_width), COLUMNS[0]), COLUMNS[1])
    # Narrow images get a full column, which their names need.
    cell_width = max(cell_width, available // columns)
    return SheetLayout(
        scale=scale,
        side=side,
        columns=columns,
        rows=-(-count // columns),
        pitch=(side[0] + NAME_PIXELS + GAP_PIXELS, cell_width),
        width=max(WIDTH_PIXELS, 2 * MARGIN_PIXELS + columns * cell_width),
    )


def compose_sheet(
    images: UInt8[np.ndarray, "M H W C"], layout: SheetLayout
) -> UInt8[np.ndarray, "height width 3"]:
    """Composes framed images into one array; pixels are repeated by the integer scale.

    Args:
      images: gray or RGB images, C = 1 or 3.
      layout: layout of M images of this size.

    Returns:
      An image of `layout.height` x `layout.width` pixels, white outside of the images.
    """
    sheet = np.full((layout.height, layout.width, 3), 255, np.uint8)
    frame = np.round(255 * np.array(to_rgb(RULE))).astype(np.uint8)
    for index, image in enumerate(images):
        large = image.repeat(layout.scale, axis=0).repeat(layout.scale, axis=1)
        (top, left), (height, width) = layout.corner(index), layout.side
        bottom, right = top + height, left + width
        framed = [slice(top - FRAME_PIXELS, bottom + FRAME_PIXELS)]
        framed += [slice(left - FRAME_PIXELS, right + FRAME_PIXELS)]
        sheet[tuple(framed)] = frame
        sheet[top:bottom, left:right] = large  # Broadcasts a single channel to three.
    return sheet


def figure_contact_sheet(record: DataRecord, split: str = "train") -> Figure:
    """Draws images of a split as the network gets them, with the names of their classes.

    Args:
      record: record of the dataset.
      split: "train" or "validation".

    Returns:
      The figure, with at most 48 images in the order of the preview.
    """
    preview = record.previews[split]
    images = preview.images[:MAX_IMAGES]
    layout = sheet_layout(len(images), *images.shape[1:3])
    width = layout.width / DPI
    note = textwrap.wrap(_note(record, split, len(images)), int(CHARACTERS_PER_INCH * width))
    header = round(DPI * (TITLE_INCHES + LINE_INCHES * (len(note) + 1)))
    height = (layout.height + header) / DPI
    title = f"{SPLITS[split].capitalize()} images as the network gets them"
    figure = new_figure(width, height, title, manual_layout=True)
    figure.text(
        0.012,
        1 - TITLE_INCHES / height,
        "\n".join(note),
        va="top",
        fontsize=9,
        linespacing=1.3,
        color=MUTED,
        parse_math=False,
    )
    _draw_sheet(figure, compose_sheet(images, layout))
    labels = preview.labels[:MAX_IMAGES]
    _write_names(figure.axes[0], layout, [record.class_names[label] for label in labels])
    return figure


def _note(record: DataRecord, split: str, num_shown: int) -> str:
    """Number, size and preprocessing of the images."""
    total = record.splits[split].examples
    height, width = record.previews[split].images.shape[1:3]
    evaluation = "Preprocessing of test images, without augmentation."
    applied = truncate(record.preprocessing, 400) if split == "train" else evaluation
    return f"{num_shown:,} of {total:,} images, {height} x {width} pixels. {applied}"


def _draw_sheet(figure: Figure, sheet: np.ndarray) -> None:
    """Draws the sheet at the bottom of the figure, one array element per pixel."""
    height, width = sheet.shape[:2]
    axes = figure.add_axes((0, 0, 1, height / round(figure.get_figheight() * DPI)))
    axes.imshow(sheet, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()


def _write_names(axes: Axes, layout: SheetLayout, names: list[str]) -> None:
    height, width = layout.side
    for index, name in enumerate(names):
        top, left = layout.corner(index)
        axes.text(
            left + width / 2,
            top + height + NAME_PIXELS // 5,
            _fitted(name, layout.pitch[1] - GAP_PIXELS / 2),
            ha="center",
            va="top",
            fontsize=NAME_POINTS,
            color=INK,
            parse_math=False,
        )


def _fitted(name: str, pixels: float) -> str:
    """The name, truncated to a width in pixels."""
    font = FontProperties(size=NAME_POINTS)
    for length in range(min(len(name), MAX_NAME_LENGTH), 1, -1):
        text = truncate(name, length)
        points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
        if points * DPI / 72 <= pixels:
            return text
    return truncate(name, 1)
