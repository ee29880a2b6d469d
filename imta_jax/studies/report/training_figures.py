"""Figures 6 and 7 of the paper: validation accuracy with and without GE, ranks with ISC."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.style import MUTED, format_signed, new_figure, style_axes
from imta_jax.studies.report.curves import validation_curves
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std
from imta_jax.studies.report.style import (
    BASELINE,
    FULL,
    OTHERS,
    add_legend,
    add_provenance,
    draw_band,
    draw_placeholder,
)

# The colors of the paper's Figure 7.
WITHOUT, WITH = "#2f6fb3", "#c0392b"
NO_PAIR = "no finished variants with and without the technique"

# A plain variant, and variants of the same network that use a technique.
Pair = tuple[VariantRecord, list[VariantRecord]]


def pairs_of(study: StudyRecord, technique: str) -> list[Pair]:
    """For each network its first plain variant and those that use a technique, all with runs.

    Variants that use the technique alone are preferred. Without any, the first variant that uses
    it together with others is taken.
    """
    pairs = []
    plains = [variant for variant in study.variants if variant.is_plain and study.finished(variant)]
    for plain in {variant.network: variant for variant in reversed(plains)}.values():
        same = [v for v in study.variants if v.network == plain.network and study.finished(v)]
        using = [variant for variant in same if technique in (variant.techniques or ())]
        alone = [variant for variant in using if variant.techniques == {technique}]
        if using:
            pairs.append((plain, alone or using[:1]))
    return pairs


def figure_validation(study: StudyRecord) -> Figure:
    """Figure 6: validation top-1 over the epochs of phase I, with and without GE.

    One column per network: the mean over exits above, the last exit below. Bands are one standard
    deviation over seeds.
    """
    pairs = [(plain, _distinct_phase_one(study, plain, u)) for plain, u in pairs_of(study, "GE")]
    width = max(8.4, 1.2 + 3.4 * len(pairs))
    figure = new_figure(width, 6.2, _validation_title(study, pairs))
    grid = figure.subplots(2, max(1, len(pairs)), squeeze=False, sharex="col")
    if not pairs:
        for axes in grid.ravel():
            draw_placeholder(axes, NO_PAIR)
    for column, (plain, using) in enumerate(pairs):
        _draw_network(grid[:, column], study, plain, using)
        if column:
            grid[0, column].set_ylabel("")
            grid[1, column].set_ylabel("")
    add_provenance(figure, study, "Phase I, before the heads are trained with ISC and OFA.")
    return figure


def _distinct_phase_one(
    study: StudyRecord, plain: VariantRecord, using: list[VariantRecord]
) -> list[VariantRecord]:
    """Variants with a phase I of their own, including other plain ones of the network.

    Variants that share a phase I have equal curves, which would cover each other.
    """
    plains = [v for v in study.variants if v.is_plain and v.network == plain.network]
    seen, distinct = [validation_curves(study, plain)[1]], []
    for variant in (*using, *(v for v in plains if study.finished(v))):
        curve = validation_curves(study, variant)[1]
        if not any(np.array_equal(curve, earlier) for earlier in seen):
            seen.append(curve)
            distinct.append(variant)
    return distinct


def _draw_network(
    column: np.ndarray, study: StudyRecord, plain: VariantRecord, using: list[VariantRecord]
) -> None:
    above, below = column
    style_axes(above, title=f"{plain.network}: mean over exits", y="validation top-1 (%)")
    style_axes(below, title="last exit", x="epoch of phase I", y="validation top-1 (%)")
    colors = (BASELINE, FULL, *OTHERS)
    for variant, color in zip([plain, *using], colors, strict=False):
        epochs, top1 = validation_curves(study, variant)
        if not len(epochs):
            continue
        prefix = "without GE: " if variant.is_plain else "with GE: "
        label = variant.label if "GE" in variant.label else prefix + variant.label
        draw_band(above, epochs, top1.mean(axis=2), color, label)
        draw_band(below, epochs, top1[:, :, -1], color, label)
    for axes in column:
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(above, loc="lower right")


def _validation_title(study: StudyRecord, pairs: list[Pair]) -> str:
    """States the gain at the end of phase I, averaged over exits, networks and seeds."""
    gains = []
    for plain, using in ((plain, using) for plain, using in pairs if using):
        last = [validation_curves(study, variant)[1] for variant in (plain, using[0])]
        if all(top1.size for top1 in last):
            gains.append(last[1][:, -1].mean() - last[0][:, -1].mean())
    if not gains:
        return f"Validation accuracy with and without GE on {study.dataset_title}"
    name = pairs[0][1][0].label if len(pairs) == 1 else "With GE"
    points = format_signed(float(np.mean(gains)), 2)
    return f"{name}: {points} points on validation images at the end of phase I"


def figure_ranks(study: StudyRecord) -> Figure:
    """Figure 7: confidence ranks of validation images at exits 1 and 2, without and with ISC.

    One panel per network: blue without ISC, red with ISC, the identity dashed. Ranks are those of
    the first seed. Rank correlations are means over seeds.
    """
    pairs = pairs_of(study, "ISC")
    panels = max(1, len(pairs))
    figure = new_figure(max(6.4, 1.0 + 4.6 * panels), 6.6, _rank_title(study, pairs))
    grid = figure.subplots(1, panels, squeeze=False)[0]
    if not pairs:
        draw_placeholder(grid[0], NO_PAIR)
    for axes, (plain, using) in zip(grid, pairs, strict=False):
        _draw_ranks(axes, study, plain, using[0])
    note = "Points: one seed. Spearman's correlation: mean ± standard deviation over seeds."
    add_provenance(figure, study, note)
    return figure


def _draw_ranks(axes: Axes, study: StudyRecord, plain: VariantRecord, using: VariantRecord) -> None:
    names = "rank of confidence at exit 1", "rank of confidence at exit 2"
    style_axes(axes, title=plain.network, x=names[0], y=names[1], grid="")
    count = 1
    for variant, color, prefix in ((plain, WITHOUT, "without ISC"), (using, WITH, "with ISC")):
        label = f"{prefix} ({variant.label}): {_correlation_text(study, variant)}"
        first, second = _ranks(study, variant)
        count = max(count, len(first))
        axes.plot(first, second, "o", color=color, markersize=3.2, alpha=0.6, label=label, mew=0)
    axes.plot([0, count], [0, count], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set(xlim=(0, count), ylim=(0, count), aspect=1)
    add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.05), markerscale=2)


def _ranks(study: StudyRecord, variant: VariantRecord) -> tuple[list[int], list[int]]:
    """The ranks at exits 1 and 2 of the first seed that has any."""
    for row in study.finished(variant).values():
        if ranks := row.get("confidence_ranks"):
            return ranks[0], ranks[1]
    return [], []


def rank_correlations(study: StudyRecord, variant: VariantRecord) -> np.ndarray:
    """Spearman's correlation of the confidences of exits 1 and 2 on validation images, [seeds]."""
    values = [row.get("rank_correlation") for row in study.finished(variant).values()]
    return np.array([value for value in values if value is not None], dtype=float)


def _correlation_text(study: StudyRecord, variant: VariantRecord) -> str:
    mean, deviation = mean_and_std(rank_correlations(study, variant))
    if np.isnan(mean):
        return "correlation unknown"
    return f"correlation {mean:.3f}" + ("" if np.isnan(deviation) else f" ± {deviation:.3f}")


def _rank_title(study: StudyRecord, pairs: list[Pair]) -> str:
    variants = (pairs[0][0], pairs[0][1][0]) if pairs else ()
    correlations = [rank_correlations(study, variant) for variant in variants]
    if not correlations or not all(len(values) for values in correlations):
        return f"Confidence ranks without and with ISC on {study.dataset_title}"
    without, using = (float(values.mean()) for values in correlations)
    return f"Rank correlation: {without:.3f} without ISC, {using:.3f} with it"
