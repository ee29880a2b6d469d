"""Figures 2-5 of the paper: accuracy against mean cost, of networks and of ablation arms."""

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
from imta_jax.studies.report.curves import arm_curves, curve_gains
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std
from imta_jax.studies.report.style import (
    add_legend,
    arm_colors,
    draw_band,
    mark_figure,
    name_absent,
    say_empty,
)

FAMILY_COLORS = {"ResNet": "#4d6b8a", "DenseNet": "#7b4fa3", "Hydra-Res": "#8a8d3c"}
# Of multi-exit networks; an MSDNet's line is solid.
FAMILY_LINES = {"ResNet": (0, (5, 1.5)), "DenseNet": (0, (1.2, 1.2))}
FAMILY_MARKERS = {"ResNet": "s", "DenseNet": "D", "Hydra-Res": "^"}
READING_MARKERS = {"ResNet": "s", "DenseNet": "D", "DenseNet*": "d", paper.OURS: "x"}


def figure_study_budget(study: StudyRecord) -> Figure:
    """Figure 2, 3 or 5: top-1 against mean multiply-adds of a study of budgets.

    Plain MSDNets are red and those with the full method black, in a band of one standard
    deviation over seeds. Networks of one exit are points, joined within a family. What was read
    off published figures is faint, and there only where the dataset is the same.
    """
    figure = new_figure(9.6, 5.4, _budget_finding(study))
    axes = figure.subplots()
    style_axes(axes, x=COST_AXIS, y="top-1 on test images (%)")
    _draw_adaptive_arms(axes, study)
    _draw_families(axes, study)
    _draw_readings(axes, study.known_dataset or "")
    axes.set_xlim(left=0)
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7.5)
    mark_figure(figure, study)
    return figure


def network_family(arm: Arm) -> str:
    """The family of a network that is no MSDNet, e.g. "ResNet" of "resnet_20"."""
    known = {"resnet": "ResNet", "densenet": "DenseNet", "hydra": "Hydra-Res"}
    plain = (arm.network.lower() or arm.name.lower()).removeprefix("quickstart_")
    # "hydra_resnet" is a Hydra, "wide_resnet" no ResNet; the quickstart has one of each.
    matches = [name for name in ("hydra", "densenet", "resnet") if name in plain]
    if matches and (matches[0] == "hydra" or plain.startswith(matches[0])):
        return known[matches[0]]
    return re.split(r"[_-]?\d", plain)[0] or arm.label


def _draw_adaptive_arms(axes: Axes, study: StudyRecord) -> None:
    colors, named = arm_colors(study), set()
    for arm in study.arms:
        costs, top1 = arm_curves(study, arm)
        if len(costs):
            label = _curve_label(arm)
            # matplotlib leaves labels with an underscore out of the legend.
            shown = f"_{label}" if label in named else label
            style = FAMILY_LINES.get(network_family(arm), "solid")
            color = colors[arm.name]
            line = draw_band(axes, costs / MILLION, top1, color, shown, linestyle=style)
            named.add(label)
            end = line.get_xdata()[-1], line.get_ydata()[-1]
            exits = study.top1(arm).shape[1]
            numbered_circle(axes, exits, *end, color, size=10)
        elif arm.techniques is not None and not study.done(arm):
            name_absent(axes, study, arm, colors[arm.name])


def _curve_label(arm: Arm) -> str:
    """One name for all networks of a color; the number of exits stands at a curve's end."""
    family = network_family(arm)
    kind = family if family in FAMILY_COLORS else "MSDNet"
    if arm.is_plain:
        return f"{kind} (in the circle: its exits)"
    return f"ours: {kind} with GE, ISC, OFA" if arm.is_full else arm.label


def _draw_families(axes: Axes, study: StudyRecord) -> None:
    """Networks of one exit: a point each with a bar of one standard deviation, joined."""
    families: dict[str, list[Arm]] = {}
    for arm in study.arms:
        if arm.techniques is None:
            families.setdefault(network_family(arm), []).append(arm)
    for place, (family, arms) in enumerate(families.items()):
        color = FAMILY_COLORS.get(family, ("#9c6b4f", MUTED)[place % 2])
        run = [arm for arm in arms if study.done(arm)]
        for arm in arms:
            if arm not in run:
                name_absent(axes, study, arm, color)
        if run:
            _draw_family(axes, study, family, run, color)


def _draw_family(axes: Axes, study: StudyRecord, family: str, arms: list[Arm], color: str) -> None:
    costs = [next(iter(study.done(arm).values()))["exits"][-1]["macs"] / MILLION for arm in arms]
    last = [mean_and_std(study.top1(arm)[:, -1]) for arm in arms]
    order = np.argsort(costs)
    means = np.array([float(mean) for mean, _ in last])[order]
    deviations = np.nan_to_num([float(deviation) for _, deviation in last])[order]
    style = {"marker": FAMILY_MARKERS.get(family, "o"), "markersize": 6, "linewidth": 1.2}
    x = np.array(costs)[order]
    axes.plot(x, means, color=color, label=family, zorder=4, **style)
    axes.errorbar(x, means, deviations, color=color, capsize=2.5, linestyle="", zorder=4)


def _draw_readings(axes: Axes, dataset: str) -> None:
    """Points read off published figures, faint, each with its source in the legend."""
    readings = paper.readings_of(dataset)
    for place, reading in enumerate(readings):
        earlier = sum(r.series == reading.series for r in readings[:place])
        adaptive = ("o", "P", "v")[earlier % 3]
        axes.plot(
            *zip(*reading.points, strict=True),
            READING_MARKERS.get(reading.series, adaptive),
            color=paper_color(reading),
            alpha=0.35,
            markersize=6,
            markeredgewidth=0.8,
            zorder=1,
            label=f"{_series(reading)}, read off (±{reading.uncertainty:g})\n{reading.source}",
        )


def _series(reading: paper.Reading) -> str:
    """What the paper calls "ours" is not ours here."""
    return "the paper's method" if reading.series == paper.OURS else reading.series


def paper_color(reading: paper.Reading) -> str:
    """A reading's color: that of the curve of ours which it stands beside."""
    if reading.adaptive:
        return "#c0392b" if reading.series == paper.MSDNET else "#111111"
    return FAMILY_COLORS.get(reading.series.rstrip("*"), "#9c6b4f")


def _budget_finding(study: StudyRecord) -> str:
    """The full method's mean lead over all budgets and networks."""
    gains = [curve_gains(study, arm)[1] for arm in study.arms if arm.is_full]
    means = np.concatenate([gain.mean(axis=1) for gain in gains if gain.size] or [np.zeros(0)])
    if not len(means):
        return f"Accuracy against cost on {study.dataset_title}"
    lead = format_signed(float(means.mean()), 2)
    return (
        f"{study.dataset_title}: ours minus the plain networks {lead} points, averaged over budgets"
    )


def figure_ablation(study: StudyRecord) -> Figure:
    """Figure 4: budget curves of an ablation's arms, below them the gains over the baseline.

    Of many arms only those that the paper has too are drawn: the first of each set of techniques.

    Gains are paired by seed at equal mean cost; bands are one standard deviation over seeds.
    """
    figure = new_figure(8.4, 7.2, _ablation_finding(study))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style_axes(above, title="budget curves")
    above.set_ylabel("top-1 on test images (%)")
    style_axes(below, title="gain over the baseline at the same mean cost", x=COST_AXIS)
    below.set_ylabel("points")
    below.axhline(0, color=MUTED, linewidth=1)
    colors = arm_colors(study)
    for arm in _arms_of_the_paper(study):
        _draw_ablation_arm(above, below, study, arm, colors[arm.name])
    if len(below.lines) == 1:
        say_empty(below, "no other arm has a seed in common with the baseline yet", keep_x=True)
    add_legend(above, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=5)
    mark_figure(figure, study)
    return figure


def _arms_of_the_paper(study: StudyRecord) -> list[Arm]:
    first = {arm.techniques: arm for arm in reversed(study.arms)}
    known = paper.paper_ablation(study.known_dataset or "").top1
    chosen = [arm for arm in study.arms if arm.techniques in known and first[arm.techniques] == arm]
    return chosen or list(study.arms)


def _draw_ablation_arm(above: Axes, below: Axes, study: StudyRecord, arm: Arm, color: str) -> None:
    costs, top1 = arm_curves(study, arm)
    if not len(costs):
        name_absent(above, study, arm, color)
        return
    state = "" if len(top1) == len(study.seeds) else f" (seeds: {study.state(arm)})"
    draw_band(above, costs / MILLION, top1, color, arm.label + state)
    costs, gains = curve_gains(study, arm)
    if len(costs):
        draw_band(below, costs / MILLION, gains, color, arm.label)


def _ablation_finding(study: StudyRecord) -> str:
    """The gain of the whole method or, where it has not been run, the largest; mean of budgets."""
    arms = _arms_of_the_paper(study)
    found = {arm.label: curve_gains(study, arm)[1] for arm in arms}
    gains = {label: gain.mean(axis=1) for label, gain in found.items() if gain.size}
    means = {label: float(gain.mean()) for label, gain in gains.items()}
    if not means:
        return f"Budget curves of each arm on {study.dataset_title}"
    whole = [arm.label for arm in arms if arm.is_full and arm.label in means]
    shown, word = (whole[0], "") if whole else (max(means, key=means.get), "The best arm, ")
    spread = float(mean_and_std(gains[shown])[1])
    lead = format_signed(means[shown], 2) + (f" ± {spread:.2f}" if np.isfinite(spread) else "")
    return f"{word}{shown}: {lead} points to the baseline over all budgets"
