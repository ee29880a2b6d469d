"""The study `recipes`: all techniques on one network, per exit and at equal cost.

The paper has no such comparison. Published curves of other authors are drawn for CIFAR-100; their
networks, schedules and protocols differ.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.run.budget import COST_AXIS
from imta_jax.report.style import MILLION, MUTED, format_signed, new_figure, style_axes
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.curves import curve_gains, variant_curves
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std
from imta_jax.studies.report.style import BASELINE, FULL, add_legend, add_provenance, draw_band
from imta_jax.studies.report.table import (
    EMPTY,
    SPREAD_NOTE,
    StudyTable,
    exit_columns,
    failures,
    mean_texts,
    padded,
)

# Read by eye from figures, or from tables (DFS), of the authors that each names.
PUBLISHED = (
    *(reading for reading in paper.readings_of("cifar100") if reading.adaptive),
    paper.Reading(
        "cifar100",
        "BoostNet on MSDNet",
        ((20, 70.2), (25, 73.2), (35, 74.5), (45, 75.5), (60, 75.75), (85, 75.8)),
        paper.BOOSTNET,
        adaptive=True,
    ),
    paper.Reading(
        "cifar100",
        "RANet",
        ((20, 71.0), (25, 72.4), (35, 73.9), (45, 74.5), (60, 75.6), (70, 75.65)),
        paper.RANET,
        adaptive=True,
    ),
    paper.Reading(
        "cifar100",
        "DFS (growth 16)",
        ((80, 76.9), (107, 78.6), (148, 79.9)),
        "DFS authors' flops-vs-acc.csv",
        uncertainty=0.0,
        adaptive=True,
    ),
)
_MARKERS = ("o", "P", "v", "s", "D", "^")
_COLORS = ("#147d7d", "#5b7fa6", "#b35c00", "#7b4fa3", "#8a8d3c", "#c06f9c", "#2f855a", "#9c6b4f")


def schedules(study: StudyRecord) -> list[list[VariantRecord]]:
    """The variants of each schedule: those that are compared with the same variant."""
    groups: dict[str, list[VariantRecord]] = {}
    for variant in study.variants:
        groups.setdefault(variant.against or study.baseline or "", []).append(variant)
    return list(groups.values())


def recipes_table(study: StudyRecord, variants: Sequence[VariantRecord]) -> StudyTable:
    """One row per variant: top-1 and paired difference per exit, and the gain at equal cost."""
    exits = max([1, *(study.top1(variant).shape[1] for variant in variants)])
    rows = [_row(study, variant, exits) for variant in variants]
    columns = ["variant", "finished seeds", *exit_columns(exits)]
    columns += [f"{name} minus plain" for name in exit_columns(exits)]
    columns += ["mean over budgets minus plain", "training time"]
    return StudyTable(
        heading=f"Recipes ({study.title}{_epochs(study, variants)})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            SPREAD_NOTE,
            "The mean over budgets is that of the difference between the budget curves at equal "
            "mean cost, paired by seed. Thresholds are chosen on validation images.",
            "Training time relative to the plain network, of phase I, or of both phases. Variants "
            "that trained phase II together have the time of all of them.",
            *failures(study),
        ),
    )


def _row(study: StudyRecord, variant: VariantRecord, exits: int) -> list[str]:
    gains = curve_gains(study, variant)[1]
    mean_gain = gains.mean(axis=1)[:, None] if gains.size else np.zeros((0, 1))
    differences = mean_texts(study.differences(variant), difference=True)
    return [
        variant.label,
        study.status(variant),
        *padded(mean_texts(study.top1(variant)), exits),
        *padded(differences, exits),
        *mean_texts(mean_gain, difference=True),
        _relative_time(study, variant),
    ]


def _relative_time(study: StudyRecord, variant: VariantRecord) -> str:
    ratios = [
        _seconds(row) / _seconds(baseline_row)
        for row, baseline_row in study.paired_rows(variant)
        if _seconds(row) and _seconds(baseline_row)
    ]
    return f"{np.mean(ratios):.2f}" if ratios else EMPTY


def _seconds(row: object) -> float:
    seconds = row.get("seconds") or {} if isinstance(row, dict) else {}
    return sum(value or 0.0 for value in seconds.values())


def _epochs(study: StudyRecord, variants: Sequence[VariantRecord]) -> str:
    """Epochs of phase I and II, of the first finished runs of each kind."""
    rows = [row["schedule"] for v in variants for row in study.finished(v).values()]
    epochs = [max(((r.get(p) or {}).get("epochs", 0) for r in rows), default=0)
             for p in ("phase_one", "phase_two")]  # fmt: skip
    return f", {epochs[0]} + {epochs[1]} epochs" if rows else ""


def figure_recipes(study: StudyRecord, variants: Sequence[VariantRecord]) -> Figure:
    """Budget curves of all variants on one axis, and their gains over the plain network below.

    Dots are the exits: the accuracy if all images leave there. Variants with a phase II are dashed.
    Bands are one standard deviation over seeds. Faint points are published.
    """
    figure = new_figure(10.5, 8.4, _title(study, variants))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(above, title="budget curves; dots: all images leave at one exit")
    above.set_ylabel("top-1 on test images (%)")
    style_axes(below, title="gain over plain at the same mean cost", x=COST_AXIS)
    below.set_ylabel("points")
    below.axhline(0, color=MUTED, linewidth=1)
    finished = [variant for variant in variants if study.finished(variant)]
    with_phase_two = [_has_phase_two(study, variant) for variant in finished]
    styles = line_styles(finished, with_phase_two)
    for variant, (color, linestyle) in zip(finished, styles, strict=True):
        line = {"linestyle": linestyle, "linewidth": 1.4}
        costs, top1 = variant_curves(study, variant)
        draw_band(above, costs / MILLION, top1, color, variant.label, **line)
        _draw_exits(above, study, variant, color)
        costs, gains = curve_gains(study, variant)
        if len(costs):
            draw_band(below, costs / MILLION, gains, color, variant.label, **line)
    _draw_published(above, study)
    add_legend(above, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7.5)
    add_provenance(figure, study)
    return figure


def _draw_exits(axes: Axes, study: StudyRecord, variant: VariantRecord, color: str) -> None:
    rows = list(study.finished(variant).values())
    costs = [exit_["macs"] / MILLION for exit_ in rows[0]["exits"]]
    axes.plot(costs, study.top1(variant).mean(axis=0), "o", color=color, markersize=3, zorder=4)


def _draw_published(axes: Axes, study: StudyRecord) -> None:
    if study.known_dataset != "cifar100":
        return
    left, right = axes.get_xlim()
    for reading, marker in zip(PUBLISHED, _MARKERS, strict=False):
        label = f"{reading.series}, published\n{reading.source}"
        style = {"alpha": 0.4, "markersize": 5, "color": MUTED, "zorder": 1}
        axes.plot(*zip(*reading.points, strict=True), marker, label=label, **style)
    axes.set_xlim(left, right)


def _has_phase_two(study: StudyRecord, variant: VariantRecord) -> bool:
    rows = study.finished(variant).values()
    return any(row["schedule"].get("phase_two") for row in rows)


def line_styles(
    variants: Sequence[VariantRecord], with_phase_two: Sequence[bool]
) -> list[tuple[str, str]]:
    """Color and line style of each variant, all different for up to 16 of each kind.

    Red for the plain network, black for the paper's method, then a cycle of colors per kind.
    """
    styles, used, has_plain = [], {False: 0, True: 0}, False
    for variant, dashed in zip(variants, with_phase_two, strict=True):
        first, second = ("--", "-.") if dashed else ("-", ":")
        if variant.name.split("_")[0] == "imta":
            styles.append((FULL, first))
        elif variant.is_plain and not has_plain:
            styles.append((BASELINE, first))
            has_plain = True
        else:
            cycle, place = divmod(used[dashed], len(_COLORS))
            styles.append((_COLORS[place], second if cycle % 2 else first))
            used[dashed] += 1
    return styles


def _title(study: StudyRecord, variants: Sequence[VariantRecord]) -> str:
    """States the variant with the largest mean gain at equal cost, and that of the paper."""
    gains = {}
    for variant in variants:
        differences = curve_gains(study, variant)[1]
        if differences.size:
            gains[variant.label] = differences.mean(axis=1)
    if not gains:
        return f"Budget curves of all recipes on {study.dataset_title}"
    best = max(gains, key=lambda label: gains[label].mean())
    mean, deviation = mean_and_std(gains[best])
    spread = f" ± {deviation:.2f}" if np.isfinite(deviation) else ""
    gain = f"{format_signed(float(mean), 2)}{spread}"
    return f"{study.dataset_title}: {best} has the largest gain over plain, {gain} points"
