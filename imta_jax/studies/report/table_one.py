"""Table 1 of the paper: single classifiers, the paper's numbers and ours."""

import re
from collections.abc import Mapping

import pandas as pd

from imta_jax.report.style import MILLION
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.paper_tables import paper_notes
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord
from imta_jax.studies.report.table import (
    EMPTY,
    SPREAD_NOTE,
    StudyTable,
    failures,
    mean_texts,
    padded,
)

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

# (Model or row name, number of the exit or of branches).
_Key = tuple[str, int]


def classifiers_table(study: StudyRecord | None, note: str = "") -> StudyTable:
    """Table 1: single classifiers, the paper's rows and those of variants that the paper lacks.

    Args:
      study: a study of exits, or None for the paper's numbers only.
      note: why ours is empty, without a study.
    """
    printed = {(row.model, row.number): _printed_row(row) for row in paper.TABLE_ONE}
    measured = {} if study is None else _own_rows(study, printed)
    names = [*printed, *(key for key in measured if key not in printed)]
    rows = [
        [*printed.get(key, [key[0], *[EMPTY] * 3]), *measured.get(key, ["not run", *_NO_CELLS])]
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
        notes = (note,)
    else:
        heading, provenance = f"{title} ({study.title})", study.provenance()
        notes = (SPREAD_NOTE, *paper_notes(study, "cifar100", ""), *failures(study))
    frame = pd.DataFrame(rows, columns=list(TABLE_ONE_COLUMNS))
    return StudyTable(heading, provenance, frame, (*notes, hydra))


def _printed_row(row: paper.TableOneRow) -> list[str]:
    # Parameters as printed: the paper rounds the 4.0 of exit 7 more than the others.
    return [row.name, str(row.params), f"{row.madds:g}", f"{row.top1:.2f}"]


def _own_rows(study: StudyRecord, printed: Mapping[_Key, list[str]]) -> dict[_Key, list[str]]:
    """Our cells by (model, number), or by (row name, number) for variants that the paper lacks."""
    rows: dict[_Key, list[str]] = {}
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
    variant: VariantRecord,
    model: str,
    printed: Mapping[_Key, list[str]],
    rows: Mapping[_Key, list[str]],
) -> list[_Key]:
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
