"""Tables 2 and 3 of the paper: ablations, the paper's numbers and ours."""

import pandas as pd

from imta_jax.report.style import format_signed
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.study_record import StudyRecord
from imta_jax.studies.report.table import (
    EMPTY,
    SPREAD_NOTE,
    StudyTable,
    accuracy_rows,
    exit_columns,
    failures,
    padded,
)


def ablation_table(study: StudyRecord) -> StudyTable:
    """Table 2 or 3: techniques x exits, with the paper's row, ours and our differences.

    Args:
      study: an ablation study. ImageNet is compared with Table 3, other datasets with Table 2.
    """
    printed = paper.paper_ablation(study.known_dataset or "")
    source = f"paper, {paper.DATASET_NAMES[printed.dataset]}"
    ours = f"ours, {study.dataset_title}"
    exits = max([len(printed.top1[frozenset()]), *(study.top1(v).shape[1] for v in study.variants)])
    rows, printed_keys = [], set()
    for variant in study.variants:
        techniques = variant.techniques
        marks = _check_marks(techniques)
        if techniques in printed.top1.keys() - printed_keys:
            printed_keys.add(techniques)
            rows.append([*marks, source, EMPTY, *_printed(printed, techniques, exits)])
        # Check marks do not distinguish two variants with the same techniques.
        ambiguous = sum(v.techniques == techniques for v in study.variants) > 1
        name = f"{ours} ({variant.label})" if ambiguous or techniques is None else ours
        rows += [[*marks, *row] for row in accuracy_rows(study, variant, exits, name)]
    columns = [*paper.TECHNIQUES, "source", "finished seeds", *exit_columns(exits)]
    return StudyTable(
        heading=f"Table {printed.number}: accuracy at different exits ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(SPREAD_NOTE, *paper_notes(study, printed.dataset, printed.remark), *failures(study)),
    )


def unrun_ablation_table(dataset: str, note: str) -> StudyTable:
    """Table 2 or 3 as printed, with empty cells for ours.

    Args:
      dataset: "cifar100" or "imagenet".
      note: why ours is empty, and the command to run.
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
        notes=(note, printed.remark),
    )


def paper_notes(study: StudyRecord, dataset: str, note: str) -> tuple[str, ...]:
    """Notes on the origin of the paper's rows and on how far ours are comparable with them."""
    name = paper.DATASET_NAMES[dataset]
    notes = [f"Paper: {name}, {paper.SCHEDULES[dataset]}, seeds not stated."]
    if study.known_dataset != dataset:
        notes.append(
            f"Our numbers are for {study.dataset_title}, the paper's for {name}: compare the signs "
            "and the order of differences, not the accuracies."
        )
    return (*notes, *([note] if note else []))


def _check_marks(techniques: frozenset[str] | None) -> list[str]:
    if techniques is None:
        return [EMPTY] * len(paper.TECHNIQUES)
    return ["✓" if name in techniques else "-" for name in paper.TECHNIQUES]


def _printed(printed: paper.AblationTable, techniques: frozenset[str], exits: int) -> list[str]:
    """A row of the paper, with differences to the paper's baseline in parentheses."""
    baseline = printed.top1[frozenset()]
    cells = [
        f"{value:.2f}" + (f" ({format_signed(value - base, 2)})" if techniques else "")
        for value, base in zip(printed.top1[techniques], baseline, strict=True)
    ]
    return padded(cells, exits)
