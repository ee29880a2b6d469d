"""What both pages share: sections of figures, templates, and files that are whole or not there."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from imta_jax.report.style import DPI
from imta_jax.runtime.files import write_atomically


@dataclass(frozen=True)
class Section:
    """One figure of a page.

    Attributes:
      name: the file's name, without `.png`.
      draw: the function that makes the figure of a record.
      heading: the question it answers.
      caption: one sentence or two for somebody who has never seen such a figure.
      needs: the part of the record without which it cannot be drawn; "" if it always can.
    """

    name: str
    draw: Callable[[Any], Figure]
    heading: str
    caption: str
    needs: str = ""


def draw_figures(record: Any, sections: Sequence[Section]) -> dict[str, bytes]:
    """Every figure the record has data for, by name, as PNG."""
    return {
        section.name: figure_png(section.draw(record))
        for section in sections
        if not section.needs or getattr(record, section.needs) is not None
    }


def write_figures(folder: Path, sections: Sequence[Section], figures: Mapping[str, bytes]) -> None:
    """Writes each section's figure as `NAME.png`, and removes those that could not be drawn."""
    for section in sections:
        path = folder / f"{section.name}.png"
        if section.name in figures:
            write_atomically(path, figures[section.name])
        else:
            # An older report's figure would look as if it belonged to this one.
            path.unlink(missing_ok=True)


def render(
    template: str, sections: Sequence[Section], figures: Mapping[str, bytes], **values: Any
) -> str:
    """A page as HTML that embeds its figures and refers to nothing.

    Args:
      template: the file's name in this folder; every value is escaped in it.
      sections: the page's sections, in order; the template gets those that have a figure.
      figures: PNG by section name.
      **values: what else the template names.
    """
    environment = Environment(
        loader=PackageLoader("imta_jax.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    embedded = [
        (section, base64.b64encode(figures[section.name]).decode("ascii"))
        for section in sections
        if section.name in figures
    ]
    return environment.get_template(template).render(sections=embedded, **values)


def figure_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
