"""A table of the study report, and the texts of its cells.

All cells are text, so that the page and the Markdown file show the same digits. A variant without
finished runs keeps its rows, with empty cells. Failed runs are listed with their errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from imta_jax.report.rendering import markdown_table
from imta_jax.report.style import format_signed
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std

EMPTY = ""
SPREAD_NOTE = (
    "Ours: top-1 on test images (%), mean ± sample standard deviation over seeds. Differences are "
    "paired by seed with the baseline of the same network."
)


@dataclass(frozen=True)
class StudyTable:
    """One table of the study report.

    Attributes:
      heading: what it shows, and of which study.
      provenance: dataset, schedule, seeds and hardware of our numbers.
      frame: the cells, as text.
      notes: remarks and failed runs.
    """

    heading: str
    provenance: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Heading, table, provenance and notes as Markdown."""
        parts = [f"## {self.heading}", markdown_table(self.frame), f"*{self.provenance}*"]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)


def accuracy_rows(
    study: StudyRecord, variant: VariantRecord, exits: int, source: str
) -> list[list[str]]:
    """A variant's top-1 per exit and, if it has a baseline, the differences to it.

    Args:
      study: the study.
      variant: one of its variants.
      exits: number of exit columns.
      source: name of the row.

    Returns:
      One or two rows: source, status of the variant, then `exits` cells.
    """
    rows = [[source, study.status(variant), *padded(mean_texts(study.top1(variant)), exits)]]
    if study.baseline_of(variant) is not None:
        differences = mean_texts(study.differences(variant), difference=True)
        rows.append(["  ours minus baseline", EMPTY, *padded(differences, exits)])
    return rows


def mean_texts(values: np.ndarray, difference: bool = False) -> list[str]:
    """One text per column of [seeds, columns], for example "80.20 ± 0.30"; see `mean_text`."""
    means, stds = mean_and_std(values)
    return [mean_text(m, s, difference) for m, s in zip(means, stds, strict=True)]


def mean_text(mean: float, std: float, difference: bool = False) -> str:
    """For example "80.20 ± 0.30", or "+0.40 ± 0.20" for a difference; NaN parts are omitted."""
    if np.isnan(mean):
        return EMPTY
    text = format_signed(mean, 2) if difference else f"{mean:.2f}"
    return text if np.isnan(std) else f"{text} ± {std:.2f}"


def exit_columns(exits: int) -> list[str]:
    """Column names of the exits, starting with "E-1"."""
    return [f"E-{number}" for number in range(1, exits + 1)]


def padded(texts: Sequence[str], length: int) -> list[str]:
    """The texts, padded with empty ones to a length."""
    return [*texts, *[EMPTY] * (length - len(texts))]


def failures(study: StudyRecord) -> tuple[str, ...]:
    """One note per failed run."""
    return tuple(
        f"Failed: {variant.label}, seed {seed}: {error}"
        for variant in study.variants
        for seed, error in study.failures(variant).items()
    )
