"""Figures 2-5 of the paper: accuracy against mean cost, of networks and of ablation variants."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.run.budget import COST_AXIS
from imta_jax.report.style import (
    MILLION,
    MUTED,
    format_signed,
    new_figure,
    numbered_circle,
    style_axes,
)
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.curves import curve_gains, variant_curves
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std
from imta_jax.studies.report.style import (
    add_legend,
    add_missing_to_legend,
    add_provenance,
    draw_band,
    draw_placeholder,
    variant_colors,
)

FAMILY_COLORS = {"ResNet": "#4d6b8a", "DenseNet": "#7b4fa3", "Hydra-Res": "#8a8d3c"}
# Line styles of multi-exit networks; lines of MSDNets are solid.
FAMILY_LINES = {"ResNet": (0, (5, 1.5)), "DenseNet": (0, (1.2, 1.2))}
FAMILY_MARKERS = {"ResNet": "s", "DenseNet": "D", "Hydra-Res": "^"}
READING_MARKERS = {"ResNet": "s", "DenseNet": "D", "DenseNet*": "d", paper.OURS: "x"}


def figure_study_budget(study: StudyRecord) -> Figure:
    """Figure 2, 3 or 5: top-1 against mean multiply-adds of a budget study.

    Plain MSDNets are red and those with all techniques black, each with a band of one standard
    deviation over seeds. Networks with one exit are points, joined within a family. Values read
    from published figures are faint; they appear only for the same dataset.
    """
    figure = new_figure(9.6, 5.4, _budget_title(study))
    axes = figure.subplots()
    style_axes(axes, x=COST_AXIS, y="top-1 on test images (%)")
    _draw_adaptive_variants(axes, study)
    _draw_families(axes, study)
    _draw_readings(axes, study.known_dataset or "")
    axes.set_xlim(left=0)
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7.5)
    add_provenance(figure, study)
    return figure


def network_family(variant: VariantRecord) -> str:
    """The family of a network other than MSDNet, for example "ResNet" for "resnet_20"."""
    known = {"resnet": "ResNet", "densenet": "DenseNet", "hydra": "Hydra-Res"}
    name = (variant.network.lower() or variant.name.lower()).removeprefix("quickstart_")
    # "hydra_resnet" is a Hydra-Res; "wide_resnet" is not a ResNet.
    matches = [family for family in ("hydra", "densenet", "resnet") if family in name]
    if matches and (matches[0] == "hydra" or name.startswith(matches[0])):
        return known[matches[0]]
    return re.split(r"[_-]?\d", name)[0] or variant.label


def _draw_adaptive_variants(axes: Axes, study: StudyRecord) -> None:
    colors, named = variant_colors(study), set()
    for variant in study.variants:
        costs, top1 = variant_curves(study, variant)
        if len(costs):
            label = _curve_label(variant)
            # matplotlib omits labels that start with an underscore from the legend.
            legend_label = f"_{label}" if label in named else label
            style = FAMILY_LINES.get(network_family(variant), "solid")
            color = colors[variant.name]
            draw_band(axes, costs / MILLION, top1, color, legend_label, linestyle=style)
            named.add(label)
            end = costs[-1] / MILLION, top1[:, -1].mean()
            numbered_circle(axes, study.top1(variant).shape[1], *end, color, size=10)
        elif variant.techniques is not None and not study.finished(variant):
            add_missing_to_legend(axes, study, variant, colors[variant.name])


def _curve_label(variant: VariantRecord) -> str:
    """One label for all networks of a color; a circle at the curve's end has its exits."""
    family = network_family(variant)
    kind = family if family in FAMILY_COLORS else "MSDNet"
    if variant.is_plain:
        return f"{kind} (circled: number of exits)"
    return f"ours: {kind} with GE, ISC, OFA" if variant.is_full else variant.label


def _draw_families(axes: Axes, study: StudyRecord) -> None:
    """Networks with one exit: joined points with bars of one standard deviation."""
    families: dict[str, list[VariantRecord]] = {}
    for variant in study.variants:
        if variant.techniques is None:
            families.setdefault(network_family(variant), []).append(variant)
    for i, (family, variants) in enumerate(families.items()):
        color = FAMILY_COLORS.get(family, ("#9c6b4f", MUTED)[i % 2])
        finished = [variant for variant in variants if study.finished(variant)]
        for variant in variants:
            if variant not in finished:
                add_missing_to_legend(axes, study, variant, color)
        if finished:
            _draw_family(axes, study, family, finished, color)


def _draw_family(
    axes: Axes, study: StudyRecord, family: str, variants: list[VariantRecord], color: str
) -> None:
    rows = [next(iter(study.finished(variant).values())) for variant in variants]
    costs = [row["exits"][-1]["macs"] / MILLION for row in rows]
    last = [mean_and_std(study.top1(variant)[:, -1]) for variant in variants]
    order = np.argsort(costs)
    means = np.array([float(mean) for mean, _ in last])[order]
    deviations = np.nan_to_num([float(deviation) for _, deviation in last])[order]
    style = {"marker": FAMILY_MARKERS.get(family, "o"), "markersize": 6, "linewidth": 1.2}
    x = np.array(costs)[order]
    axes.plot(x, means, color=color, label=family, zorder=4, **style)
    axes.errorbar(x, means, deviations, color=color, capsize=2.5, linestyle="", zorder=4)


def _draw_readings(axes: Axes, dataset: str) -> None:
    """Values read from published figures: faint points, with their source in the legend."""
    readings = paper.readings_of(dataset)
    for i, reading in enumerate(readings):
        earlier = sum(r.series == reading.series for r in readings[:i])
        adaptive = ("o", "P", "v")[earlier % 3]
        axes.plot(
            *zip(*reading.points, strict=True),
            READING_MARKERS.get(reading.series, adaptive),
            color=reading_color(reading),
            alpha=0.35,
            markersize=6,
            markeredgewidth=0.8,
            zorder=1,
            label=f"{_series(reading)}, read by eye (±{reading.uncertainty:g})\n{reading.source}",
        )


def _series(reading: paper.Reading) -> str:
    """The series' name; the paper's "Ours" would be mistaken for this library's results."""
    return "the paper's method" if reading.series == paper.OURS else reading.series


def reading_color(reading: paper.Reading) -> str:
    """The color of our curve of the same method."""
    if reading.adaptive:
        return "#c0392b" if reading.series == paper.MSDNET else "#111111"
    return FAMILY_COLORS.get(reading.series.rstrip("*"), "#9c6b4f")


def _budget_title(study: StudyRecord) -> str:
    """States the full method's mean gain over all budgets and networks."""
    gains = [curve_gains(study, variant)[1] for variant in study.variants if variant.is_full]
    means = np.concatenate([gain.mean(axis=1) for gain in gains if gain.size] or [np.zeros(0)])
    if not len(means):
        return f"Accuracy against cost on {study.dataset_title}"
    gain = format_signed(float(means.mean()), 2)
    return f"{study.dataset_title}: ours minus plain networks {gain} points, mean over budgets"


def figure_ablation(study: StudyRecord) -> Figure:
    """Figure 4: budget curves of an ablation's variants, and the gains over the baseline below.

    Of variants with equal techniques only the first is drawn, and only if the paper has it too.
    Gains are paired by seed at equal mean cost. Bands are one standard deviation over seeds.
    """
    figure = new_figure(8.4, 7.2, _ablation_title(study))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(above, title="budget curves")
    above.set_ylabel("top-1 on test images (%)")
    style_axes(below, title="gain over the baseline at the same mean cost", x=COST_AXIS)
    below.set_ylabel("points")
    below.axhline(0, color=MUTED, linewidth=1)
    colors = variant_colors(study)
    for variant in _variants_of_the_paper(study):
        _draw_ablation_variant((above, below), study, variant, colors[variant.name])
    if len(below.lines) == 1:
        reason = "no other variant has a finished seed in common with the baseline"
        draw_placeholder(below, reason, keep_x=True)
    add_legend(above, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=5)
    add_provenance(figure, study)
    return figure


def _variants_of_the_paper(study: StudyRecord) -> list[VariantRecord]:
    first = {variant.techniques: variant for variant in reversed(study.variants)}
    printed = paper.paper_ablation(study.known_dataset or "").top1
    chosen = [v for v in study.variants if v.techniques in printed and first[v.techniques] == v]
    return chosen or list(study.variants)


def _draw_ablation_variant(
    panels: tuple[Axes, Axes], study: StudyRecord, variant: VariantRecord, color: str
) -> None:
    above, below = panels
    costs, top1 = variant_curves(study, variant)
    if not len(costs):
        add_missing_to_legend(above, study, variant, color)
        return
    complete = len(top1) == len(study.seeds)
    status = "" if complete else f" (seeds: {study.status(variant)})"
    draw_band(above, costs / MILLION, top1, color, variant.label + status)
    costs, gains = curve_gains(study, variant)
    if len(costs):
        draw_band(below, costs / MILLION, gains, color, variant.label)


def _ablation_title(study: StudyRecord) -> str:
    """States the mean gain over budgets of the full method, or the largest gain without it."""
    variants = _variants_of_the_paper(study)
    by_label = {variant.label: curve_gains(study, variant)[1] for variant in variants}
    gains = {label: gain.mean(axis=1) for label, gain in by_label.items() if gain.size}
    means = {label: float(gain.mean()) for label, gain in gains.items()}
    if not means:
        return f"Budget curves of each variant on {study.dataset_title}"
    full = [variant.label for variant in variants if variant.is_full and variant.label in means]
    largest = max(means, key=lambda label: means[label])
    shown, prefix = (full[0], "") if full else (largest, "Best variant, ")
    deviation = float(mean_and_std(gains[shown])[1])
    gain = format_signed(means[shown], 2)
    gain += f" ± {deviation:.2f}" if np.isfinite(deviation) else ""
    return f"{prefix}{shown}: {gain} points over the baseline, mean over budgets"
