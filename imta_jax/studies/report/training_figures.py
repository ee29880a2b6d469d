"""Figures 6 and 7 of the paper: validation accuracy with and without GE, ranks with ISC."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imta_jax.report.style import MUTED, format_signed, new_figure, style_axes
from imta_jax.studies.report.curves import validation_curves
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std
from imta_jax.studies.report.style import (
    BASELINE,
    FULL,
    OTHERS,
    add_legend,
    draw_band,
    mark_figure,
    say_empty,
)

# The paper's own colors in its Figure 7.
WITHOUT, WITH = "#2f6fb3", "#c0392b"
NO_PAIR = "no pair of arms with and without it that is done"


def pairs_of(study: StudyRecord, technique: str) -> list[tuple[Arm, list[Arm]]]:
    """Per network its first plain arm, and those that have the technique; both with runs done.

    Arms with the technique alone come before arms that have others too: of those, only the first
    is taken, and only where there is none of the former.
    """
    pairs = []
    plains = [arm for arm in study.arms if arm.is_plain and study.done(arm)]
    for plain in {arm.network: arm for arm in reversed(plains)}.values():
        same = [a for a in study.arms if a.network == plain.network and study.done(a)]
        using = [a for a in same if technique in (a.techniques or ())]
        alone = [arm for arm in using if arm.techniques == {technique}]
        if using:
            pairs.append((plain, alone or using[:1]))
    return pairs


def figure_validation(study: StudyRecord) -> Figure:
    """Figure 6: validation top-1 over the epochs of phase I, with and without GE.

    One column per network; above the mean over exits, below the last exit; bands are one standard
    deviation over seeds.
    """
    pairs = [(plain, _trained_apart(study, plain, u)) for plain, u in pairs_of(study, "GE")]
    width = max(8.4, 1.2 + 3.4 * len(pairs))
    figure = new_figure(width, 6.2, _validation_finding(study, pairs))
    grid = figure.subplots(2, max(1, len(pairs)), squeeze=False, sharex="col")
    if not pairs:
        for axes in grid.ravel():
            say_empty(axes, NO_PAIR)
    for column, (plain, using) in enumerate(pairs):
        _draw_network(grid[:, column], study, plain, using)
        if column:
            grid[0, column].set_ylabel("")
            grid[1, column].set_ylabel("")
    mark_figure(figure, study, "Phase I, before heads are trained with ISC and OFA.")
    return figure


def _trained_apart(study: StudyRecord, plain: Arm, using: list[Arm]) -> list[Arm]:
    """Of the arms on a network those with a phase I of their own: others would hide the first.

    Other plain arms (another phase I without GE) come along.
    """
    plains = [a for a in study.arms if a.is_plain and a.network == plain.network and study.done(a)]
    seen, apart = [validation_curves(study, plain)[1]], []
    for arm in (*using, *plains):
        curve = validation_curves(study, arm)[1]
        if not any(np.array_equal(curve, earlier) for earlier in seen):
            seen.append(curve)
            apart.append(arm)
    return apart


def _draw_network(column: np.ndarray, study: StudyRecord, plain: Arm, using: list[Arm]) -> None:
    above, below = column
    style_axes(above, title=f"{plain.network}: mean over exits", y="validation top-1 (%)")
    style_axes(below, title="last exit", x="epoch of phase I", y="validation top-1 (%)")
    colors = (BASELINE, FULL, *OTHERS)
    for arm, color in zip([plain, *using], colors, strict=False):
        epochs, top1 = validation_curves(study, arm)
        if not len(epochs):
            continue
        word = "without GE: " if arm.is_plain else "with GE: "
        label = arm.label if "GE" in arm.label else word + arm.label
        draw_band(above, epochs, top1.mean(axis=2), color, label)
        draw_band(below, epochs, top1[:, :, -1], color, label)
    for axes in column:
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(above, loc="lower right")


def _validation_finding(study: StudyRecord, pairs: list[tuple[Arm, list[Arm]]]) -> str:
    """How far phase I ends above the plain arm's, mean over exits, networks and seeds."""
    gains = []
    for plain, using in ((plain, using) for plain, using in pairs if using):
        last = [validation_curves(study, arm)[1] for arm in (plain, using[0])]
        if all(top1.size for top1 in last):
            gains.append(last[1][:, -1].mean() - last[0][:, -1].mean())
    if not gains:
        return f"Validation accuracy with and without GE on {study.dataset_title}"
    name = pairs[0][1][0].label if len(pairs) == 1 else "With GE"
    points = format_signed(float(np.mean(gains)), 2)
    return f"{name}: {points} points on validation images, when phase I ends"


def figure_ranks(study: StudyRecord) -> Figure:
    """Figure 7: ranks of validation images by confidence at exits 1 and 2, without and with ISC.

    One panel per network: blue without, red with, the identity dashed. The ranks are of the first
    seed; the rank correlations beside them are means over seeds.
    """
    pairs = pairs_of(study, "ISC")
    panels = max(1, len(pairs))
    figure = new_figure(max(6.4, 1.0 + 4.6 * panels), 6.6, _rank_finding(study, pairs))
    grid = figure.subplots(1, panels, squeeze=False)[0]
    if not pairs:
        say_empty(grid[0], NO_PAIR)
    for axes, (plain, using) in zip(grid, pairs, strict=False):
        _draw_ranks(axes, study, plain, using[0])
    more = "Points are of one seed; Spearman's correlation: mean ± standard deviation over seeds."
    mark_figure(figure, study, more)
    return figure


def _draw_ranks(axes: Axes, study: StudyRecord, plain: Arm, using: Arm) -> None:
    names = "rank of confidence at exit 1", "rank of confidence at exit 2"
    style_axes(axes, title=plain.network, x=names[0], y=names[1], grid="")
    count = 1
    for arm, color, word in ((plain, WITHOUT, "without ISC"), (using, WITH, "with ISC")):
        label = f"{word} ({arm.label}): {_correlation_text(study, arm)}"
        first, second = _ranks(study, arm)
        count = max(count, len(first))
        axes.plot(first, second, "o", color=color, markersize=3.2, alpha=0.6, label=label, mew=0)
    axes.plot([0, count], [0, count], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set(xlim=(0, count), ylim=(0, count), aspect=1)
    add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.05), markerscale=2)


def _ranks(study: StudyRecord, arm: Arm) -> tuple[list[int], list[int]]:
    """The ranks of the first seed that has any."""
    kept = [row.get("confidence_ranks") for row in study.done(arm).values()]
    kept = [ranks for ranks in kept if ranks]
    return (kept[0][0], kept[0][1]) if kept else ([], [])


def rank_correlations(study: StudyRecord, arm: Arm) -> np.ndarray:
    """[seeds] Spearman's correlation of the confidences of exits 1 and 2, on validation images."""
    values = [row.get("rank_correlation") for row in study.done(arm).values()]
    return np.array([value for value in values if value is not None], dtype=float)


def _correlation_text(study: StudyRecord, arm: Arm) -> str:
    mean, deviation = mean_and_std(rank_correlations(study, arm))
    if np.isnan(mean):
        return "correlation unknown"
    return f"correlation {mean:.3f}" + ("" if np.isnan(deviation) else f" ± {deviation:.3f}")


def _rank_finding(study: StudyRecord, pairs: list[tuple[Arm, list[Arm]]]) -> str:
    both = [rank_correlations(study, arm) for arm in (pairs[0][0], pairs[0][1][0])] if pairs else []
    if not all(len(values) for values in both) or not both:
        return f"Confidence ranks without and with ISC on {study.dataset_title}"
    without, using = (float(values.mean()) for values in both)
    return f"Exits 1 and 2 correlate at {without:.3f} without ISC, {using:.3f} with it"
