"""Tables 1-3 of the paper: its printed numbers and ours. `study_tables` has the other tables.

All cells are text, so that the page and the Markdown file show the same digits. A variant without
finished runs keeps its rows, with empty cells. Failed runs are listed with their errors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from imta_jax.report.rendering import markdown_table
from imta_jax.report.style import MILLION, format_signed
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.record import StudyRecord, VariantRecord, mean_and_std

EMPTY = ""
SPREAD_NOTE = (
    "Ours: top-1 on test images (%), mean ± sample standard deviation over seeds. Differences are "
    "paired by seed with the baseline of the same network."
)


@dataclass(frozen=True)
class StudyTable:
    """One table of the study report.

    Attributes:
      heading: What it shows, and of which study.
      provenance: Dataset, schedule, seeds and hardware of our numbers.
      frame: The cells, as text.
      notes: Remarks and failed runs.
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


def ablation_table(study: StudyRecord) -> StudyTable:
    """Table 2 or 3: techniques x exits, with the paper's row, ours and our differences.

    Args:
      study: An ablation study. ImageNet is compared with Table 3, other datasets with Table 2.
    """
    printed = paper.paper_ablation(study.known_dataset or "")
    source = f"paper, {paper.DATASET_NAMES[printed.dataset]}"
    ours = f"ours, {study.dataset_title}"
    exits = max([len(printed.top1[frozenset()]), *(study.top1(v).shape[1] for v in study.variants)])
    rows, shown = [], set()
    for variant in study.variants:
        techniques = variant.techniques
        marks = _check_marks(techniques)
        if techniques in printed.top1.keys() - shown:
            shown.add(techniques)
            rows.append([*marks, source, EMPTY, *_printed(printed, techniques, exits)])
        # Check marks do not distinguish two variants with the same techniques.
        ambiguous = sum(other.techniques == techniques for other in study.variants) > 1
        name = f"{ours} ({variant.label})" if ambiguous or techniques is None else ours
        rows += [[*marks, *row] for row in accuracy_rows(study, variant, exits, name)]
    columns = [*paper.TECHNIQUES, "source", "finished seeds", *exit_columns(exits)]
    return StudyTable(
        heading=f"Table {printed.number}: accuracy at different exits ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(SPREAD_NOTE, *paper_notes(study, printed.dataset, printed.remark), *failures(study)),
    )


def unrun_ablation_table(dataset: str, remark: str) -> StudyTable:
    """Table 2 or 3 as printed, with empty cells for ours.

    Args:
      dataset: "cifar100" or "imagenet".
      remark: Why ours is empty, and the command to run.
    """
    printed = paper.paper_ablation(dataset)
    name, exits = paper.DATASET_NAMES[dataset], len(printed.top1[frozenset()])
    rows = []
    for techniques in printed.top1:
        marks = _check_marks(techniques)
        rows.append([*marks, f"paper, {name}", EMPTY, *_printed(printed, techniques, exits)])
        rows.append([*marks, f"ours, {name}", "not run", *[EMPTY] * exits])
    columns = [*paper.TECHNIQUES, "source", "finished seeds", *exit_columns(exits)]
    return StudyTable(
        heading=f"Table {printed.number}: accuracy at different exits on {name}",
        provenance=f"ours: not run; paper: {name}, {paper.SCHEDULES[dataset]}",
        frame=pd.DataFrame(rows, columns=columns),
        notes=(remark, printed.remark),
    )


def accuracy_rows(
    study: StudyRecord, variant: VariantRecord, exits: int, source: str
) -> list[list[str]]:
    """A variant's top-1 per exit and, if it has a baseline, the differences to it.

    Args:
      study: The study.
      variant: One of its variants.
      exits: Number of exit columns.
      source: Name of the row.

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


def paper_notes(study: StudyRecord, dataset: str, remark: str) -> tuple[str, ...]:
    """Notes on the origin of the paper's rows and on how far ours are comparable with them."""
    name = paper.DATASET_NAMES[dataset]
    notes = [f"Paper: {name}, {paper.SCHEDULES[dataset]}, seeds not stated."]
    if study.known_dataset != dataset:
        notes.append(
            f"Our numbers are for {study.dataset_title}, the paper's for {name}: compare the signs "
            "and the order of differences, not the accuracies."
        )
    return (*notes, *([remark] if remark else []))


def _check_marks(techniques: frozenset[str] | None) -> list[str]:
    if techniques is None:
        return [EMPTY] * len(paper.TECHNIQUES)
    return ["✓" if name in techniques else "-" for name in paper.TECHNIQUES]


def _printed(printed: paper.AblationTable, techniques: frozenset[str], exits: int) -> list[str]:
    """A row of the paper, with differences to the paper's baseline in parentheses."""
    plain = printed.top1[frozenset()]
    cells = [
        f"{value:.2f}" + (f" ({format_signed(value - base, 2)})" if techniques else "")
        for value, base in zip(printed.top1[techniques], plain, strict=True)
    ]
    return padded(cells, exits)


TABLE_ONE_COLUMNS = (
    "model",
    "paper: params (M)",
    "paper: MADDs (M)",
    "paper: top-1",
    "ours: finished seeds",
    "ours: params (M)",
    "ours: operations as published (M)",
    "ours: multiply-adds (M)",
    "ours: top-1",
    "ours minus baseline",
)
_NO_CELLS = (EMPTY,) * 5


def classifiers_table(study: StudyRecord | None, remark: str = "") -> StudyTable:
    """Table 1: single classifiers, the paper's rows and those of variants that the paper lacks.

    Args:
      study: A study of exits, or None for the paper's numbers only.
      remark: Why ours is empty, without a study.
    """
    printed = {(row.model, row.number): _printed_row(row) for row in paper.TABLE_ONE}
    own = {} if study is None else _own_rows(study, printed)
    names = [*printed, *(key for key in own if key not in printed)]
    rows = [
        [*printed.get(key, [key[0], *[EMPTY] * 3]), *own.get(key, ["not run", *_NO_CELLS])]
        for key in names
    ]
    title = "Table 1: individual classifiers"
    printed_of = "Paper: CIFAR-100, " + paper.SCHEDULES["cifar100"]
    hydra = (
        "The paper quotes the Hydra-Res rows from the HydraNet paper. Our costs include the "
        "learned transfers of phase II, which the paper's costs do not."
    )
    if study is None:
        heading, provenance = f"{title} on CIFAR-100", f"ours: not run; {printed_of}"
        notes = (remark,)
    else:
        heading, provenance = f"{title} ({study.title})", study.provenance()
        notes = (SPREAD_NOTE, *paper_notes(study, "cifar100", ""), *failures(study))
    frame = pd.DataFrame(rows, columns=list(TABLE_ONE_COLUMNS))
    return StudyTable(heading, provenance, frame, (*notes, hydra))


def _printed_row(row: paper.TableOneRow) -> list[str]:
    # Parameters as printed: the paper rounds the 4.0 of exit 7 more than the others.
    return [row.name, str(row.params), f"{row.madds:g}", f"{row.top1:.2f}"]


def _own_rows(study: StudyRecord, printed: dict[tuple[str, int], list[str]]) -> dict:
    """Our cells by (model, number), or by (row name, number) for variants that the paper lacks."""
    rows = {}
    for variant in study.variants:
        model = _paper_model(variant)
        cells = _classifier_cells(study, variant)
        for index, texts in enumerate(cells):
            branches = _branches(variant) if model == paper.HYDRA and len(cells) == 1 else None
            key = (model, branches or index + 1)
            if key not in printed or key in rows:
                key = (f"{variant.label}-Exit{index + 1}", index + 1)
            rows[key] = texts
        if cells and model in (paper.MSDNET, paper.OURS):
            deeper = [key for key in printed if key[0] == model and key[1] > len(cells)]
            rows |= {key: ["no such exit", *_NO_CELLS] for key in deeper if key not in rows}
        if not cells:
            keys = _keys_without_cells(variant, model, printed, rows)
            rows |= {key: [study.status(variant), *_NO_CELLS] for key in keys}
    return rows


def _keys_without_cells(
    variant: VariantRecord, model: str, printed: dict[tuple[str, int], list[str]], rows: dict
) -> list[tuple[str, int]]:
    """The rows that show the status of a variant without costs or finished runs."""
    if (model, 1) in printed and model != paper.HYDRA:
        return [key for key in printed if key[0] == model and key not in rows]
    key = (paper.HYDRA, _branches(variant) or 0)
    return [key if model == paper.HYDRA and key in printed else (variant.label, 0)]


def _classifier_cells(study: StudyRecord, variant: VariantRecord) -> list[list[str]]:
    rows = study.finished(variant)
    exits = next(iter(rows.values()))["exits"] if rows else variant.costs
    accuracy = padded(mean_texts(study.top1(variant)), len(exits))
    differences = padded(mean_texts(study.differences(variant), difference=True), len(exits))
    return [
        [
            study.status(variant),
            *(f"{exit_[key] / MILLION:.2f}" for key in ("params", "published_ops", "macs")),
            accuracy[index],
            differences[index],
        ]
        for index, exit_ in enumerate(exits)
    ]


def _paper_model(variant: VariantRecord) -> str:
    """The paper's model that a variant corresponds to, or the variant's label."""
    if "hydra" in variant.network.lower() or "hydra" in variant.name.lower():
        return paper.HYDRA
    return paper.MSDNET if variant.is_plain else paper.OURS if variant.is_full else variant.label


def _branches(variant: VariantRecord) -> int | None:
    """Branches of a Hydra-Res: the last number in the name of its network or variant."""
    numbers = re.findall(r"\d+", variant.network) or re.findall(r"\d+", variant.name)
    return int(numbers[-1]) if numbers else None
