"""The entries of the study report: all tables and figures of the paper, then further ones."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from imta_jax.report.rendering import FigureImages, figure_images
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.budget_figures import figure_ablation, figure_study_budget
from imta_jax.studies.report.paper_tables import ablation_table, unrun_ablation_table
from imta_jax.studies.report.recipes import figure_recipes, recipes_table, schedules
from imta_jax.studies.report.study_record import STUDIES, StudyRecord
from imta_jax.studies.report.study_tables import (
    budget_table,
    distillation_table,
    equilibrium_table,
)
from imta_jax.studies.report.sweep_figures import figure_distillation, figure_gradient_variance
from imta_jax.studies.report.sweep_table import sweep_table
from imta_jax.studies.report.table import StudyTable
from imta_jax.studies.report.table_one import classifiers_table
from imta_jax.studies.report.training_figures import figure_ranks, figure_validation, pairs_of

CAPTIONS = {
    "budget": "Lower cost is to the left, higher accuracy at the top. Thresholds are chosen on "
    "validation images. Networks with one exit are points. Faint points are read by eye from "
    "published figures of the same dataset; their costs are slightly higher than multiply-adds.",
    "ablation": "Top: budget curves. Bottom: gain over the baseline at the same mean cost, paired "
    "by seed. Bands are one sample standard deviation over seeds.",
    "validation": "The paper claims that gradient equilibrium (GE) gives higher and more stable "
    "validation accuracy throughout training.",
    "ranks": "Each point is a validation image at the ranks of its confidence at two exits. "
    "The paper claims that inline subnetwork collaboration (ISC) moves the points towards the "
    "identity line.",
    "distillation": "The paper states neither alpha nor the temperature. They are chosen on "
    "validation images. Differences between cells that are smaller than the standard deviation "
    "over seeds are not significant.",
    "recipes": "All variants have the same network, schedule, data and seeds. Dashed variants have "
    "a phase II. Faint points are published by others, on their own networks and schedules.",
    "variance": "Without gradient equilibrium, the gradients of all later losses add up at an "
    "early stage (Eq. 3). With it, the variance of their sum is bounded (Eq. 6).",
}


@dataclasses.dataclass(frozen=True)
class ReportEntry:
    """A figure, a table, or a note that it has not been run.

    Attributes:
      heading: name of the table or figure, and of the study.
      caption: how to read it.
      name: file name of a figure without `.png`; "" for a table or a note.
      image: a drawn figure, or None.
      table: a table, or None.
      missing: text of a note: why there is neither, and the command to run.
    """

    heading: str
    caption: str = ""
    name: str = ""
    image: FigureImages | None = None
    table: StudyTable | None = None
    missing: str = ""


def collect_entries(studies: Sequence[StudyRecord]) -> list[ReportEntry]:
    """Draws the paper's tables and figures in its order, then the other ones."""
    by_name = {name: [study for study in studies if study.name == name] for name in STUDIES}
    ablations = by_name["ablation"]
    entries = [
        *_table_one(by_name["exits"]),
        *_tables_two_and_three(ablations),
        *_budgets(by_name["budget"]),
        *_figures("Figure 4: ablation", "ablation", figure_ablation, ablations, "ablation"),
        *_validation(by_name),
        *_ranks(by_name),
        *_distillation(by_name["distillation"]),
        *_equilibrium(by_name["equilibrium"]),
        *_recipes(by_name["recipes"]),
        *(_table(sweep_table(study)) for study in by_name["sweep"]),
        *(_unsupported(study) for study in studies if study.name not in STUDIES),
    ]
    return _with_distinct_names(entries)


def command(study: str, preset: str = "") -> str:
    """The command that runs a study."""
    config = f"configs/studies/{study}.py" + (f":{preset}" if preset else "")
    workdir = f"runs/{study}" + (f"_{preset}" if preset else "")
    return f"python launch.py --mode=study --config={config} --workdir={workdir}"


def not_run(study: str, dataset: str = "") -> str:
    """A note that a study has not been run (on a dataset of the paper), with the command."""
    suffix = f" on {paper.DATASET_NAMES[dataset]}" if dataset else ""
    return f"The study `{study}` has not been run{suffix}. Run `{command(study, dataset)}`."


def _table(table: StudyTable) -> ReportEntry:
    return ReportEntry(table.heading, table=table)


def _figure(
    heading: str, caption: str, draw: Callable[[StudyRecord], Figure], study: StudyRecord
) -> ReportEntry:
    if not any(study.finished(variant) for variant in study.variants):
        lines = [f"The study {study.title} has no finished run."]
        lines += [
            f"{variant.label}, seed {seed} failed: {error}."
            for variant in study.variants
            for seed, error in study.failures(variant).items()
        ]
        return ReportEntry(f"{heading} ({study.title})", missing=" ".join(lines))
    name = "_".join([heading.split(":")[0].lower().replace(",", ""), study.name, study.preset])
    return ReportEntry(
        heading=f"{heading} ({study.title})",
        caption=CAPTIONS[caption],
        name="".join(c if c.isalnum() else "_" for c in name),
        image=figure_images(draw(study)),
    )


def _figures(
    heading: str,
    caption: str,
    draw: Callable[[StudyRecord], Figure],
    studies: Sequence[StudyRecord],
    source: str,
) -> list[ReportEntry]:
    """The figure of each study, or one note that the study `source` has not been run."""
    figures = [_figure(heading, caption, draw, study) for study in studies]
    return figures or [ReportEntry(heading, missing=not_run(source))]


def _table_one(studies: list[StudyRecord]) -> list[ReportEntry]:
    entries = [_table(classifiers_table(study)) for study in studies]
    if not any(study.known_dataset == "cifar100" for study in studies):
        entries.append(_table(classifiers_table(None, not_run("exits", "cifar100"))))
    return entries


def _tables_two_and_three(studies: list[StudyRecord]) -> list[ReportEntry]:
    entries = []
    for printed in paper.ABLATIONS:
        of_dataset = [s for s in studies if paper.paper_ablation(s.known_dataset or "") is printed]
        entries += [_table(ablation_table(study)) for study in of_dataset]
        if not any(study.known_dataset == printed.dataset for study in studies):
            note = not_run("ablation", printed.dataset)
            entries.append(_table(unrun_ablation_table(printed.dataset, note)))
    return entries


def _budgets(studies: list[StudyRecord]) -> list[ReportEntry]:
    entries = []
    for dataset, number in paper.BUDGET_FIGURES.items():
        heading = f"Figure {number}: budgeted batch classification"
        of_dataset = [study for study in studies if study.known_dataset == dataset]
        figures = [_figure(heading, "budget", figure_study_budget, study) for study in of_dataset]
        title = f"{heading} on {paper.DATASET_NAMES[dataset]}"
        entries += figures or [ReportEntry(title, missing=not_run("budget", dataset))]
    heading = "Figures 2, 3 and 5: budgeted batch classification"
    others = [study for study in studies if study.known_dataset is None]
    entries += [_figure(heading, "budget", figure_study_budget, study) for study in others]
    return entries + [_table(budget_table(study)) for study in studies]


def _validation(by_name: Mapping[str, list[StudyRecord]]) -> list[ReportEntry]:
    """Figure 6, preferably of the studies made for it, else of others with a suitable pair."""
    heading = "Figure 6: validation accuracy over epochs"
    studies = _with_pairs([*by_name["equilibrium"], *by_name["budget"]], "GE")
    studies = studies or _with_pairs([*by_name["ablation"], *by_name["exits"]], "GE")
    return _figures(heading, "validation", figure_validation, studies, "equilibrium")


def _ranks(by_name: Mapping[str, list[StudyRecord]]) -> list[ReportEntry]:
    heading = "Figure 7: confidence ranks at exits 1 and 2"
    studies = _with_pairs(by_name["ablation"], "ISC") or _with_pairs(by_name["exits"], "ISC")
    return _figures(heading, "ranks", figure_ranks, studies, "ablation")


def _with_pairs(studies: list[StudyRecord], technique: str) -> list[StudyRecord]:
    return [study for study in studies if pairs_of(study, technique)]


def _distillation(studies: list[StudyRecord]) -> list[ReportEntry]:
    heading = "Distillation: alpha and temperature"
    figures = _figures(heading, "distillation", figure_distillation, studies, "distillation")
    return figures + [_table(distillation_table(study)) for study in studies]


def _equilibrium(studies: list[StudyRecord]) -> list[ReportEntry]:
    heading = "Equilibrium: gradient variance per stage"
    figures = _figures(heading, "variance", figure_gradient_variance, studies, "equilibrium")
    return figures + [_table(equilibrium_table(study)) for study in studies]


def _recipes(studies: list[StudyRecord]) -> list[ReportEntry]:
    """A figure and a table for each schedule; nothing without the study, as the paper has none."""
    heading = "Recipes: budget curves"
    entries = []
    for study in studies:
        for variants in schedules(study):
            draw = functools.partial(figure_recipes, variants=variants)
            entries.append(_figure(heading, "recipes", draw, study))
            entries.append(_table(recipes_table(study, variants)))
    return entries


def _unsupported(study: StudyRecord) -> ReportEntry:
    text = f"The report has no tables or figures for `{study.name}`; it supports "
    return ReportEntry(study.title, missing=f"{text}{', '.join(STUDIES)}.")


def _with_distinct_names(entries: Sequence[ReportEntry]) -> list[ReportEntry]:
    """Numbers the figures of studies with equal name and preset, so that no file is replaced."""
    taken: dict[str, int] = {}
    named = []
    for entry in entries:
        if entry.name:
            taken[entry.name] = count = taken.get(entry.name, 0) + 1
            suffix = f"_{count}" if count > 1 else ""
            entry = dataclasses.replace(entry, name=entry.name + suffix)
        named.append(entry)
    return named
