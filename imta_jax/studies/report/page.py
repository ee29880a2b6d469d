"""The paper's tables and figures from studies, ours beside its printed numbers, on one page.

    python -m imta_jax.studies runs/ablation/study.json runs/budget/study.json --out=evidence

What has not been run stays on the page, empty, with the command that runs it.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from imta_jax.report.rendering import figure_png, render
from imta_jax.runtime.files import write_atomically
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.budget_figures import figure_ablation, figure_study_budget
from imta_jax.studies.report.record import STUDIES, StudyRecord, study_from
from imta_jax.studies.report.sweep_figures import figure_distillation, figure_gradient_variance
from imta_jax.studies.report.tables import (
    StudyTable,
    ablation_table,
    classifiers_table,
    unrun_ablation_table,
)
from imta_jax.studies.report.training_figures import figure_ranks, figure_validation, pairs_of
from imta_jax.studies.report.variant_tables import (
    budget_table,
    distillation_table,
    equilibrium_table,
)

LEAD = (
    "Ours beside the numbers that the paper prints. Bands and ± are one sample standard deviation "
    "over seeds; differences are paired, seed by seed. The paper's numbers are of its own "
    "datasets and schedules: each is labeled with them. What has not been run is shown empty."
)
CAPTIONS = {
    "budget": "Further left is cheaper, higher is better. Thresholds are chosen on validation "
    "images; networks of one exit are points. Faint points are read by eye off published figures "
    "of the same dataset; their costs count slightly more than multiply-adds.",
    "ablation": "Above the budget curves, below how far each lies over the baseline at the same "
    "mean cost, seed by seed; bands are one sample standard deviation over seeds.",
    "validation": "The paper claims that accuracy is higher with gradient equilibrium (GE) "
    "throughout training, and steadier.",
    "ranks": "Each point is a validation image, by how sure two exits are of it. The paper claims "
    "that inline subnetwork collaboration (ISC) draws the points to the identity line.",
    "distillation": "The paper gives neither alpha nor the temperature. Chosen on validation "
    "images; neighboring cells that differ by less than the seeds do are no finding.",
    "variance": "What gradient equilibrium is for: without it the gradients of all later losses "
    "add up at an early stage (Eq. 3), with it their sum stays bounded (Eq. 6).",
}


@dataclass(frozen=True)
class Exhibit:
    """One entry of the evidence: a figure, a table, or the word that it has not been run.

    Attributes:
      heading: which table or figure, and of which study.
      caption: how to read it.
      name: of a figure, its file without `.png`; else "".
      image: of a figure, its PNG.
      table: of a table.
      missing: why there is neither, and the command that changes it; else "".
    """

    heading: str
    caption: str = ""
    name: str = ""
    image: bytes = b""
    table: StudyTable | None = None
    missing: str = ""

    @property
    def embedded(self) -> str:
        """The image as base64."""
        return base64.b64encode(self.image).decode("ascii")


def write_evidence(studies: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Writes `tables.md`, `figures/*.png` and a self-contained `index.html`.

    Args:
      studies: contents of `study.json` files, in any order; several of one name each get their
        own tables and figures.
      folder: where to write; made if it is not there. Figures of an earlier call are removed.

    Returns:
      The path of `index.html`, which is written last: where it is new, all else is.

    Raises:
      ValueError: one of them is not a study; nothing is written then.
    """
    records = [study_from(one, f"study {i}") for i, one in enumerate(studies, start=1)]
    exhibits = collect_exhibits(records)
    folder = Path(folder)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("*.png"):
        old.unlink()
    for exhibit in exhibits:
        if exhibit.image:
            write_atomically(figures / f"{exhibit.name}.png", exhibit.image)
    write_atomically(folder / "tables.md", evidence_markdown(exhibits))
    write_atomically(folder / "index.html", render_evidence(exhibits))
    return folder / "index.html"


def render_evidence(exhibits: Sequence[Exhibit]) -> str:
    """The page as HTML that embeds its figures and refers to nothing."""
    values = {"lead": LEAD, "paper": paper.TITLE, "exhibits": exhibits, "with_code": with_code}
    return render("study_page.html.jinja", (), {}, **values)


def with_code(text: str) -> Markup:
    """The text escaped for HTML, what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def evidence_markdown(exhibits: Sequence[Exhibit]) -> str:
    """All tables as one Markdown text, with a word for each exhibit that is missing."""
    parts = ["# Tables", LEAD]
    for exhibit in exhibits:
        if exhibit.table is not None:
            parts.append(exhibit.table.markdown())
        elif exhibit.missing:
            parts += [f"## {exhibit.heading}", exhibit.missing]
    return "\n\n".join(parts) + "\n"


def collect_exhibits(studies: Sequence[StudyRecord]) -> list[Exhibit]:
    """Every table and figure in the paper's order, then those that the paper has not."""
    of = {name: [study for study in studies if study.name == name] for name in STUDIES}
    exhibits = [
        *_table_one(of["exits"]),
        *_tables_two_and_three(of["ablation"]),
        *_budgets(of["budget"]),
        *_figures("Figure 4: ablation", "ablation", figure_ablation, of["ablation"], "ablation"),
        *_curves(of),
        *_ranks(of),
        *_distillation(of["distillation"]),
        *_equilibrium(of["equilibrium"]),
        *(_unknown(study) for study in studies if study.name not in STUDIES),
    ]
    return _with_distinct_names(exhibits)


def command(study: str, preset: str = "") -> str:
    """The command that runs a study."""
    config = f"configs/studies/{study}.py" + (f":{preset}" if preset else "")
    workdir = f"runs/{study}" + (f"_{preset}" if preset else "")
    return f"python launch.py --mode=study --config={config} --workdir={workdir}"


def not_run(study: str, dataset: str = "") -> str:
    """That a study has not been run, on a dataset of the paper if it is named, and the remedy."""
    where = f" on {paper.DATASET_NAMES[dataset]}" if dataset else ""
    return f"No run of the study `{study}`{where} yet; run: `{command(study, dataset)}`"


def _table(table: StudyTable) -> Exhibit:
    return Exhibit(table.heading, table=table)


def _figure(
    heading: str, caption: str, draw: Callable[[StudyRecord], Figure], study: StudyRecord
) -> Exhibit:
    if not any(study.done(arm) for arm in study.arms):
        lines = [f"The study {study.title} has no run that is done yet."]
        lines += [
            f"{arm.label}, seed {seed} failed: {error}."
            for arm in study.arms
            for seed, error in study.failures(arm).items()
        ]
        return Exhibit(f"{heading} ({study.title})", missing=" ".join(lines))
    name = "_".join([heading.split(":")[0].lower().replace(",", ""), study.name, study.preset])
    return Exhibit(
        heading=f"{heading} ({study.title})",
        caption=CAPTIONS[caption],
        name="".join(c if c.isalnum() else "_" for c in name),
        image=figure_png(draw(study)),
    )


def _figures(
    heading: str,
    caption: str,
    draw: Callable[[StudyRecord], Figure],
    studies: Sequence[StudyRecord],
    source: str,
) -> list[Exhibit]:
    """The figure of each study, or one exhibit that says that `source` has not been run."""
    drawn = [_figure(heading, caption, draw, study) for study in studies]
    return drawn or [Exhibit(heading, missing=not_run(source))]


def _table_one(studies: list[StudyRecord]) -> list[Exhibit]:
    exhibits = [_table(classifiers_table(study)) for study in studies]
    if not any(study.known_dataset == "cifar100" for study in studies):
        exhibits.append(_table(classifiers_table(None, not_run("exits", "cifar100"))))
    return exhibits


def _tables_two_and_three(studies: list[StudyRecord]) -> list[Exhibit]:
    exhibits = []
    for printed in paper.ABLATIONS:
        beside = [s for s in studies if paper.paper_ablation(s.known_dataset or "") is printed]
        exhibits += [_table(ablation_table(study)) for study in beside]
        if not any(study.known_dataset == printed.dataset for study in studies):
            remark = not_run("ablation", printed.dataset)
            exhibits.append(_table(unrun_ablation_table(printed.dataset, remark)))
    return exhibits


def _budgets(studies: list[StudyRecord]) -> list[Exhibit]:
    exhibits = []
    for dataset, number in paper.BUDGET_FIGURES.items():
        heading = f"Figure {number}: budgeted batch classification"
        own = [study for study in studies if study.known_dataset == dataset]
        drawn = [_figure(heading, "budget", figure_study_budget, study) for study in own]
        title = f"{heading} on {paper.DATASET_NAMES[dataset]}"
        exhibits += drawn or [Exhibit(title, missing=not_run("budget", dataset))]
    heading = "Figures 2, 3 and 5: budgeted batch classification"
    others = [study for study in studies if study.known_dataset is None]
    exhibits += [_figure(heading, "budget", figure_study_budget, study) for study in others]
    return exhibits + [_table(budget_table(study)) for study in studies]


def _curves(of: Mapping[str, list[StudyRecord]]) -> list[Exhibit]:
    """Figure 6 of each study made for it, else of another that has a pair of arms."""
    heading = "Figure 6: validation accuracy over epochs"
    studies = _with_pairs([*of["equilibrium"], *of["budget"]], "GE")
    studies = studies or _with_pairs([*of["ablation"], *of["exits"]], "GE")
    return _figures(heading, "validation", figure_validation, studies, "equilibrium")


def _ranks(of: Mapping[str, list[StudyRecord]]) -> list[Exhibit]:
    heading = "Figure 7: confidence ranks at exits 1 and 2"
    studies = _with_pairs(of["ablation"], "ISC") or _with_pairs(of["exits"], "ISC")
    return _figures(heading, "ranks", figure_ranks, studies, "ablation")


def _with_pairs(studies: list[StudyRecord], technique: str) -> list[StudyRecord]:
    return [study for study in studies if pairs_of(study, technique)]


def _distillation(studies: list[StudyRecord]) -> list[Exhibit]:
    heading = "Distillation: alpha and temperature"
    drawn = _figures(heading, "distillation", figure_distillation, studies, "distillation")
    return drawn + [_table(distillation_table(study)) for study in studies]


def _equilibrium(studies: list[StudyRecord]) -> list[Exhibit]:
    heading = "Equilibrium: variance of the gradient per stage"
    drawn = _figures(heading, "variance", figure_gradient_variance, studies, "equilibrium")
    return drawn + [_table(equilibrium_table(study)) for study in studies]


def _unknown(study: StudyRecord) -> Exhibit:
    known = ", ".join(STUDIES)
    text = f"Nothing here draws the study `{study.name}`; it draws {known}."
    return Exhibit(study.title, missing=text)


def _with_distinct_names(exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """Numbers figures whose files would be one: several studies may share name and preset."""
    taken: dict[str, int] = {}
    named = []
    for exhibit in exhibits:
        if exhibit.name:
            taken[exhibit.name] = count = taken.get(exhibit.name, 0) + 1
            suffix = f"_{count}" if count > 1 else ""
            exhibit = Exhibit(**{**vars(exhibit), "name": exhibit.name + suffix})
        named.append(exhibit)
    return named
