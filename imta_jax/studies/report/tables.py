"""Tables 1-3 of the paper, ours beside its printed numbers; other studies: `study_arm_tables`.

Each table is a frame of texts, so that the page and the Markdown file show the same digits. An arm
that was not run keeps its rows, with empty cells; one that failed says so and why.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from imta_jax.report.style import MILLION, format_signed
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std

EMPTY = ""
SPREAD_NOTE = (
    "Ours: mean ± sample standard deviation over seeds of top-1 on test images (%); differences "
    "are paired, seed by seed, with the baseline of the same network."
)


@dataclass(frozen=True)
class StudyTable:
    """One table of the evidence.

    Attributes:
      heading: what it is and of which study.
      mark: dataset, schedule, seeds and hardware of our numbers.
      frame: texts only.
      notes: what a reader must know; failures among them.
    """

    heading: str
    mark: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Heading, table, mark and notes as Markdown."""
        cells = self.frame.map(lambda text: text.replace("|", "\\|").replace("\n", " "))
        # Texts stay as they are: the numbers carry their digits already.
        table = cells.to_markdown(index=False, disable_numparse=True)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(
            [f"## {self.heading}", table, f"*{self.mark}*", *([notes] * bool(notes))]
        )


def ablation_table(study: StudyRecord) -> StudyTable:
    """Table 2 or 3: GE, ISC, OFA x exits, the paper's row above ours and our differences.

    Args:
      study: an ablation; on ImageNet it is set beside Table 3, otherwise beside Table 2.
    """
    printed = paper.paper_ablation(study.known_dataset or "")
    source = f"paper, {paper.DATASET_NAMES[printed.dataset]}"
    ours = f"ours, {study.dataset_title}"
    exits = max([len(printed.top1[frozenset()]), *(study.top1(a).shape[1] for a in study.arms)])
    rows, told = [], set()
    for arm in study.arms:
        marks = _check_marks(arm.techniques)
        if arm.techniques in printed.top1.keys() - told:
            told.add(arm.techniques)
            rows.append([*marks, source, EMPTY, *_printed(printed, arm.techniques, exits)])
        # Check marks do not tell two variants of a technique apart.
        twins = sum(other.techniques == arm.techniques for other in study.arms) > 1
        source_of_arm = f"{ours} ({arm.label})" if twins or arm.techniques is None else ours
        rows += [[*marks, *row] for row in accuracy_rows(study, arm, exits, source_of_arm)]
    columns = [*paper.TECHNIQUES, "source", "seeds done", *exit_columns(exits)]
    return StudyTable(
        heading=f"Table {printed.number}: accuracy at different exits ({study.title})",
        mark=study.mark(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(SPREAD_NOTE, *paper_notes(study, printed.dataset, printed.remark), *failures(study)),
    )


def unrun_ablation_table(dataset: str, remark: str) -> StudyTable:
    """Table 2 or 3 as printed, with ours empty.

    Args:
      dataset: "cifar100" or "imagenet".
      remark: why ours is empty and what fills it.
    """
    printed = paper.paper_ablation(dataset)
    name, exits = paper.DATASET_NAMES[dataset], len(printed.top1[frozenset()])
    rows = []
    for techniques in printed.top1:
        marks = _check_marks(techniques)
        rows.append([*marks, f"paper, {name}", EMPTY, *_printed(printed, techniques, exits)])
        rows.append([*marks, f"ours, {name}", "not run", *[EMPTY] * exits])
    columns = [*paper.TECHNIQUES, "source", "seeds done", *exit_columns(exits)]
    return StudyTable(
        heading=f"Table {printed.number}: accuracy at different exits on {name}",
        mark=f"ours: not run; paper: {name}, {paper.SCHEDULES[dataset]}",
        frame=pd.DataFrame(rows, columns=columns),
        notes=(remark, printed.remark),
    )


def accuracy_rows(study: StudyRecord, arm: Arm, exits: int, source: str) -> list[list[str]]:
    """An arm's top-1 per exit and, where there is a baseline, its differences to it.

    Args:
      study: the study.
      arm: one of its arms.
      exits: how many columns of exits there are.
      source: the name of the row.

    Returns:
      One or two rows: source, state of the arm, then `exits` texts.
    """
    rows = [[source, study.state(arm), *padded(mean_texts(study.top1(arm)), exits)]]
    if study.baseline_of(arm) is not None:
        differences = mean_texts(study.differences(arm), difference=True)
        rows.append(["  ours, to baseline", EMPTY, *padded(differences, exits)])
    return rows


def mean_texts(values: np.ndarray, difference: bool = False) -> list[str]:
    """A text per column of [seeds, columns], e.g. "80.20 ± 0.30"; without ± of one seed."""
    means, stds = mean_and_std(values)
    return [mean_text(m, s, difference) for m, s in zip(means, stds, strict=True)]


def mean_text(mean: float, std: float, difference: bool = False) -> str:
    """E.g. "80.20 ± 0.30", of a difference "+0.40 ± 0.20"; what is NaN is left out."""
    if np.isnan(mean):
        return EMPTY
    text = format_signed(mean, 2) if difference else f"{mean:.2f}"
    return text if np.isnan(std) else f"{text} ± {std:.2f}"


def exit_columns(exits: int) -> list[str]:
    """The names of exits as columns, "E-1" first."""
    return [f"E-{number}" for number in range(1, exits + 1)]


def padded(texts: Sequence[str], length: int) -> list[str]:
    """The texts with empty ones after them up to a length."""
    return [*texts, *[EMPTY] * (length - len(texts))]


def failures(study: StudyRecord) -> tuple[str, ...]:
    """One note for every run that failed."""
    return tuple(
        f"Failed: {arm.label}, seed {seed}: {error}"
        for arm in study.arms
        for seed, error in study.failures(arm).items()
    )


def paper_notes(study: StudyRecord, dataset: str, remark: str) -> tuple[str, ...]:
    """What the paper's rows stand for, and whether ours may be compared with them."""
    name = paper.DATASET_NAMES[dataset]
    notes = [f"Paper: {name}, {paper.SCHEDULES[dataset]}, seeds not stated."]
    if study.known_dataset != dataset:
        notes.append(
            f"Ours are of {study.dataset_title}, the paper's of {name}: the sign and the order of "
            "differences can be compared, the accuracies cannot."
        )
    return (*notes, *([remark] if remark else []))


def _check_marks(techniques: frozenset[str] | None) -> list[str]:
    if techniques is None:
        return [EMPTY] * len(paper.TECHNIQUES)
    return ["✓" if name in techniques else "-" for name in paper.TECHNIQUES]


def _printed(printed: paper.AblationTable, techniques: frozenset[str], exits: int) -> list[str]:
    """A row of the paper, each cell with its difference to the paper's baseline."""
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
    "ours: seeds done",
    "ours: params (M)",
    "ours: operations as published (M)",
    "ours: multiply-adds (M)",
    "ours: top-1",
    "ours, to baseline",
)


def classifiers_table(study: StudyRecord | None, remark: str = "") -> StudyTable:
    """Table 1: each classifier by itself, as many rows as the paper has and those of other arms.

    Args:
      study: a study of exits, or None for the paper's numbers with ours empty.
      remark: why ours is empty, without a study.
    """
    printed = {(row.model, row.number): _printed_row(row) for row in paper.TABLE_ONE}
    own = {} if study is None else _own_rows(study, printed)
    names = [*printed, *(key for key in own if key not in printed)]
    rows = [
        [*printed.get(key, [key[0], *[EMPTY] * 3]), *own.get(key, ["not run", *[EMPTY] * 5])]
        for key in names
    ]
    title = "Table 1: individual classifiers"
    printed_of = "Paper: CIFAR-100, " + paper.SCHEDULES["cifar100"]
    hydra = (
        "Hydra-Res rows are quoted from the paper, which has them from the HydraNet paper. Costs "
        "of ours count the second phase's learned transfers, which the paper's do not."
    )
    if study is None:
        heading, mark, notes = f"{title} on CIFAR-100", f"ours: not run; {printed_of}", (remark,)
    else:
        heading, mark = f"{title} ({study.title})", study.mark()
        notes = (SPREAD_NOTE, *paper_notes(study, "cifar100", ""), *failures(study))
    frame = pd.DataFrame(rows, columns=list(TABLE_ONE_COLUMNS))
    return StudyTable(heading, mark, frame, (*notes, hydra))


def _printed_row(row: paper.TableOneRow) -> list[str]:
    # Parameters as the paper prints them: 4.0 of exit 7 is rounded more than the others.
    return [row.name, str(row.params), f"{row.madds:g}", f"{row.top1:.2f}"]


def _own_rows(study: StudyRecord, printed: dict[tuple[str, int], list[str]]) -> dict:
    """Our cells by (model, number); of an arm the paper lacks by (its row's name, number)."""
    rows = {}
    for arm in study.arms:
        model = _model_of(arm)
        cells = _classifier_cells(study, arm)
        for index, texts in enumerate(cells):
            hydra = _branches(arm) if model == paper.HYDRA and len(cells) == 1 else None
            key = (model, hydra or index + 1)
            if key not in printed or key in rows:
                key = (f"{arm.label}-Exit{index + 1}", index + 1)
            rows[key] = texts
        if cells and model in (paper.MSDNET, paper.OURS):
            deeper = [key for key in printed if key[0] == model and key[1] > len(cells)]
            rows |= {key: ["no such exit", *[EMPTY] * 5] for key in deeper if key not in rows}
        if not cells and (model, 1) in printed and model != paper.HYDRA:
            continued = [key for key in printed if key[0] == model and key not in rows]
            rows |= {key: [study.state(arm), *[EMPTY] * 5] for key in continued}
        elif not cells:
            key = (paper.HYDRA, _branches(arm)) if model == paper.HYDRA else (arm.label, 0)
            rows[key if key in printed else (arm.label, 0)] = [study.state(arm), *[EMPTY] * 5]
    return rows


def _classifier_cells(study: StudyRecord, arm: Arm) -> list[list[str]]:
    rows = study.done(arm)
    exits = next(iter(rows.values()))["exits"] if rows else arm.costs
    accuracy = padded(mean_texts(study.top1(arm)), len(exits))
    differences = padded(mean_texts(study.differences(arm), difference=True), len(exits))
    return [
        [
            study.state(arm),
            *(f"{exit_[key] / MILLION:.2f}" for key in ("params", "published_ops", "macs")),
            accuracy[index],
            differences[index],
        ]
        for index, exit_ in enumerate(exits)
    ]


def _model_of(arm: Arm) -> str:
    """Which of the paper's models an arm stands for; else its own label."""
    if "hydra" in arm.network.lower() or "hydra" in arm.name.lower():
        return paper.HYDRA
    return paper.MSDNET if arm.is_plain else paper.OURS if arm.is_full else arm.label


def _branches(arm: Arm) -> int | None:
    """Hydra-Res's number of branches, the last number in the network's name or the arm's."""
    numbers = re.findall(r"\d+", arm.network) or re.findall(r"\d+", arm.name)
    return int(numbers[-1]) if numbers else None
