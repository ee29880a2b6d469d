"""Shared by all report pages: sections of figures, HTML templates, Markdown tables."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from imta_jax.report.dark_mode import use_dark_colors
from imta_jax.report.fonts import use_fallback_fonts
from imta_jax.report.style import DPI
from imta_jax.runtime.files import delete_file, write_atomically


@dataclass(frozen=True)
class FigureImages:
    """A figure as PNG files.

    Attributes:
      light: PNG in the colors of `style.py`.
      dark: PNG for pages in dark mode.
    """

    light: bytes
    dark: bytes

    def data_address(self, mode: Literal["light", "dark"]) -> str:
        """A `data:` address with one of the files."""
        return "data:image/png;base64," + base64.b64encode(getattr(self, mode)).decode("ascii")


@dataclass(frozen=True)
class Section:
    """One figure of a page.

    Attributes:
      name: file name without `.png`.
      draw: function from a record to the figure.
      heading: the question that the figure answers.
      caption: one or two sentences for readers who are new to such figures.
      needs: attribute of the record that must not be None; "" if the figure can always be drawn.
    """

    name: str
    draw: Callable[[Any], Figure]
    heading: str
    caption: str
    needs: str = ""


def draw_figures(record: Any, sections: Sequence[Section]) -> dict[str, FigureImages]:
    """Draws every figure that the record has data for; returns them by section name."""
    return {
        section.name: figure_images(section.draw(record))
        for section in sections
        if not section.needs or getattr(record, section.needs) is not None
    }


def write_figures(
    folder: Path, sections: Sequence[Section], figures: Mapping[str, FigureImages]
) -> None:
    """Writes each figure as `NAME.png` and deletes earlier figures that were not drawn again."""
    for section in sections:
        path = folder / f"{section.name}.png"
        if section.name in figures:
            write_atomically(path, figures[section.name].light)
        else:
            # A figure of an earlier report would look as if it belonged to this one.
            delete_file(path)


def render(
    template: str, sections: Sequence[Section], figures: Mapping[str, FigureImages], **values: Any
) -> str:
    """Renders a self-contained HTML page with embedded figures.

    Args:
      template: file name in the folder `templates`; all values are escaped.
      sections: sections of the page in order; those without a figure are omitted.
      figures: figures by section name.
      **values: further variables of the template.
    """
    environment = Environment(
        loader=PackageLoader("imta_jax.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    embedded = [(section, figures[section.name]) for section in sections if section.name in figures]
    return environment.get_template(template).render(sections=embedded, **values)


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of text cells as a Markdown table."""
    cells = frame.map(lambda text: text.replace("|", "\\|").replace("\n", " "))
    # Numbers are formatted already; tabulate must not parse them.
    return cells.to_markdown(index=False, disable_numparse=True)


def figure_images(figure: Figure) -> FigureImages:
    """A figure as PNG files; it has the colors of dark mode afterwards."""
    use_fallback_fonts(figure)
    light = _png(figure)
    use_dark_colors(figure)
    return FigureImages(light, _png(figure))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
