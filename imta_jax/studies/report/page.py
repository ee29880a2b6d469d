"""Writes the study report: the paper's tables and figures from our runs, on one page.

    python -m imta_jax.studies runs/ablation/ablation/study.json --out=runs/study_report

Tables and figures that have not been run are empty and show the command that runs them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from imta_jax.report.rendering import render
from imta_jax.runtime.files import write_atomically
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.entries import ReportEntry, collect_entries
from imta_jax.studies.report.parsing import parse_study

LEAD = (
    "Our results with the paper's printed numbers for comparison. Bands and ± are one sample "
    "standard deviation over seeds. Differences are paired by seed. The paper's numbers are for "
    "the datasets and schedules that each table names. Missing runs are shown as empty cells."
)


def write_study_report(studies: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `tables.md`, `figures/*.png` and a self-contained `index.html`.

    Args:
      studies: contents of `study.json` files in any order. Each gets its own tables and figures.
      folder: folder to write into; created if missing. Its earlier figures are removed.

    Returns:
      Path of `index.html`, which is written last.

    Raises:
      ValueError: one of them is not a study. Nothing is written then.
    """
    records = [parse_study(study, f"study {i}") for i, study in enumerate(studies, start=1)]
    entries = collect_entries(records)
    folder = Path(folder)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("*.png"):
        old.unlink()
    for entry in entries:
        if entry.image:
            write_atomically(figures / f"{entry.name}.png", entry.image.light)
    write_atomically(folder / "tables.md", report_markdown(entries))
    write_atomically(folder / "index.html", render_study_page(entries))
    return folder / "index.html"


def render_study_page(entries: Sequence[ReportEntry]) -> str:
    """The page as self-contained HTML, with embedded figures."""
    values = {"lead": LEAD, "paper": paper.TITLE, "entries": entries, "with_code": with_code}
    return render("study_page.html.jinja", (), {}, **values)


def with_code(text: str) -> Markup:
    """Escapes text for HTML and marks parts between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def report_markdown(entries: Sequence[ReportEntry]) -> str:
    """All tables as Markdown, with a note for each missing entry."""
    parts = ["# Tables", LEAD]
    for entry in entries:
        if entry.table is not None:
            parts.append(entry.table.markdown())
        elif entry.missing:
            parts += [f"## {entry.heading}", entry.missing]
    return "\n\n".join(parts) + "\n"
