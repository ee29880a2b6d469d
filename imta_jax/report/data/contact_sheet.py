"""The figure that shows the images themselves: a sheet of them, each above its class's name.

The images are not left to matplotlib to scale: they are laid out as one array of the figure's own
pixels, each image's pixel a whole square of them, so that a sheet is as sharp as its images.
"""

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from imta_jax.report.data.record import SPLITS, DataRecord
from imta_jax.report.style import DPI, INK, MUTED, RULE, new_figure, truncate

MOST_IMAGES = 48
WIDTH_PIXELS = 1408  # 8.8 inches, as the other figures
MARGIN_PIXELS = 16
GAP_PIXELS = 12
FRAME_PIXELS = 2
NAME_PIXELS = 34
IDEAL_SIDE_PIXELS = 160
COLUMNS = (6, 8)
LONGEST_NAME = 40
NAME_POINTS = 8
TITLE_INCHES = 0.4
LINE_INCHES = 0.17
CHARACTERS_PER_INCH = 14


@dataclass(frozen=True)
class SheetLayout:
    """Where the images of a sheet stand; all lengths in pixels of the figure.

    Attributes:
      scale: figure pixels per image pixel, a whole number.
      side: (height, width) of an image as drawn.
      columns: images in a row.
      rows: rows of images.
      pitch: (down, across) from one image's corner to the next one's.
      width: of the sheet, margins included.
    """

    scale: int
    side: tuple[int, int]
    columns: int
    rows: int
    pitch: tuple[int, int]
    width: int

    @property
    def height(self) -> int:
        """Height of the sheet, names included."""
        return self.rows * self.pitch[0]

    def corner(self, index: int) -> tuple[int, int]:
        """(row, column) of the upper left pixel of an image, counted from 0."""
        row, column = divmod(index, self.columns)
        inset = (self.pitch[1] - GAP_PIXELS - self.side[1]) // 2
        top, left = FRAME_PIXELS + row * self.pitch[0], MARGIN_PIXELS + column * self.pitch[1]
        return top, left + inset


def sheet_layout(count: int, height: int, width: int) -> SheetLayout:
    """Lays out a number of images of a size in pixels: small ones enlarged, six to eight a row."""
    scale = max(1, round(IDEAL_SIDE_PIXELS / max(height, width)))
    side = scale * height, scale * width
    across = side[1] + GAP_PIXELS
    room = WIDTH_PIXELS - 2 * MARGIN_PIXELS
    columns = min(max(round(room / across), COLUMNS[0]), COLUMNS[1])
    # Narrow images get their share of the row all the same: their names need it.
    across = max(across, room // columns)
    return SheetLayout(
        scale=scale,
        side=side,
        columns=columns,
        rows=-(-count // columns),
        pitch=(side[0] + NAME_PIXELS + GAP_PIXELS, across),
        width=max(WIDTH_PIXELS, 2 * MARGIN_PIXELS + columns * across),
    )


def compose_sheet(images: np.ndarray, layout: SheetLayout) -> np.ndarray:
    """The sheet as one picture, every image framed and unaltered but for whole repeats of pixels.

    Args:
      images: uint8 [M, H, W, C], C = 1 or 3.
      layout: of M images of this size.

    Returns:
      uint8 [layout.height, layout.width, 3], white where there is no image.
    """
    sheet = np.full((layout.height, layout.width, 3), 255, np.uint8)
    frame = np.round(255 * np.array(to_rgb(RULE))).astype(np.uint8)
    for index, image in enumerate(images):
        large = image.repeat(layout.scale, axis=0).repeat(layout.scale, axis=1)
        (top, left), (height, width) = layout.corner(index), layout.side
        bottom, right = top + height, left + width
        around = [slice(top - FRAME_PIXELS, bottom + FRAME_PIXELS)]
        around += [slice(left - FRAME_PIXELS, right + FRAME_PIXELS)]
        sheet[tuple(around)] = frame
        sheet[top:bottom, left:right] = large  # one channel becomes three
    return sheet


def figure_contact_sheet(record: DataRecord, split: str = "train") -> Figure:
    """Some images of a split as the network sees them, each with its class's name beneath.

    Args:
      record: the data.
      split: "train" or "validation".

    Returns:
      The figure, with at most 48 images, in the order of the preview.
    """
    preview = record.previews[split]
    images = preview.images[:MOST_IMAGES]
    layout = sheet_layout(len(images), *images.shape[1:3])
    width = layout.width / DPI
    note = textwrap.wrap(_note(record, split, len(images)), int(CHARACTERS_PER_INCH * width))
    header = round(DPI * (TITLE_INCHES + LINE_INCHES * (len(note) + 1)))
    height = (layout.height + header) / DPI
    title = f"{SPLITS[split].capitalize()} images as the network sees them"
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
    labels = preview.labels[:MOST_IMAGES]
    _write_names(figure.axes[0], layout, [record.class_names[label] for label in labels])
    return figure


def _note(record: DataRecord, split: str, shown: int) -> str:
    """What was done to the images, and how many of them these are."""
    whole = record.splits[split].examples
    height, width = record.previews[split].images.shape[1:3]
    exactly = "Prepared as test images are, nothing at random."
    done = truncate(record.preprocessing, 400) if split == "train" else exactly
    return f"{shown:,} of {whole:,} images, {height} x {width} pixels. {done}"


def _draw_sheet(figure: Figure, sheet: np.ndarray) -> None:
    """Puts the sheet at the figure's foot, one array element on one pixel."""
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
    """The name, shortened to a width: letters differ too much to count them."""
    font = FontProperties(size=NAME_POINTS)
    for length in range(min(len(name), LONGEST_NAME), 1, -1):
        text = truncate(name, length)
        points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
        if points * DPI / 72 <= pixels:
            return text
    return truncate(name, 1)
