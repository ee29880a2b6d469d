"""Tables of the studies that the paper has none of: budgets, equilibrium and distillation."""

import numpy as np
import pandas as pd

from imta_jax.report.style import format_count
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.curves import curve_at, curve_gains
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std
from imta_jax.studies.report.tables import (
    EMPTY,
    SPREAD_NOTE,
    StudyTable,
    accuracy_rows,
    exit_columns,
    failures,
    mean_text,
    mean_texts,
    padded,
)

SHARES = (0.25, 0.5, 0.75)
SETTINGS = {
    "phase_two.teacher": "teacher",
    "phase_two.reduction": "KL",
    "phase_two.temperature_squared": "times T²",
    "phase_two.alpha": "alpha",
    "phase_two.temperature": "temperature",
}


def budget_table(study: StudyRecord) -> StudyTable:
    """One row per network and arm: cost, last exit, and top-1 at shares of the full cost."""
    rows = [_budget_row(study, arm) for arm in study.arms]
    at = claimed_cost(study)
    columns = ["arm", "network", "seeds done", "full cost", "exits", "last exit", "to baseline"]
    columns += [f"top-1 at {share:.0%} of the cost" for share in SHARES]
    columns += ["gain over budgets", f"gain at {format_count(at)}"]
    notes = [
        SPREAD_NOTE,
        "Gains are between budget curves at the same mean cost, over the baseline of the same "
        "network: averaged over all budgets, and at the cost for which the paper names a gain "
        "(empty where the network does not reach it).",
    ]
    if claim := paper.BUDGET_CLAIMS.get(study.known_dataset or ""):
        notes.append(f"The paper claims, {claim}")
    return StudyTable(
        heading=f"Budgets ({study.title})",
        mark=study.mark(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(*notes, *failures(study)),
    )


def claimed_cost(study: StudyRecord) -> float:
    """The mean cost at which the paper names a gain: 1e8, on ImageNet 1e9 (printed as 1e8)."""
    return 1e9 if study.known_dataset == "imagenet" else 1e8


def gains_at(study: StudyRecord, arm: Arm, cost: float) -> np.ndarray:
    """[seeds] an arm's gain over its baseline at a mean cost; [0] where a curve lacks it."""
    costs, gains = curve_gains(study, arm)
    if not len(costs) or not costs[0] <= cost <= costs[-1]:
        return np.zeros(0)
    return np.array([np.interp(cost, costs, gain) for gain in gains])


def _gain_texts(study: StudyRecord, arm: Arm) -> list[str]:
    gains = curve_gains(study, arm)[1]
    averaged = gains.mean(axis=1) if gains.size else np.zeros(0)
    both = averaged, gains_at(study, arm, claimed_cost(study))
    return [mean_text(*mean_and_std(values), difference=True) for values in both]


def _budget_row(study: StudyRecord, arm: Arm) -> list[str]:
    done = study.done(arm)
    texts = [arm.label, arm.network, study.state(arm)]
    if not done:
        return padded(texts, 9 + len(SHARES))
    full = next(iter(done.values()))["exits"][-1]["macs"]
    exits = study.top1(arm).shape[1]
    last = mean_texts(study.top1(arm)[:, -1:])
    to_baseline = mean_texts(study.differences(arm)[:, -1:], difference=True) or [EMPTY]
    at = np.array([curve_at(row, full * np.array(SHARES)) for row in done.values()])
    # A network of one exit has one cost, and no budget below it.
    shares = mean_texts(at) if exits > 1 else [EMPTY] * len(SHARES)
    gains = _gain_texts(study, arm)
    return [*texts, format_count(full), str(exits), *last, *to_baseline, *shares, *gains]


def equilibrium_table(study: StudyRecord) -> StudyTable:
    """Arms x exits: top-1, differences, and the variances of Eq. 3 at each stage's output."""
    exits = max([1, *(study.top1(arm).shape[1] for arm in study.arms)])
    rows = [
        [arm.label, *row]
        for arm in study.arms
        for row in [
            *accuracy_rows(study, arm, exits, "top-1"),
            *_variance_rows(study, arm, exits),
        ]
    ]
    columns = ["arm", "row", "seeds done", *exit_columns(exits)]
    return StudyTable(
        heading=f"Gradient equilibrium ({study.title})",
        mark=study.mark(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            SPREAD_NOTE,
            "Gradient variance: over images, of the summed loss's gradient with respect to what "
            "a stage hands on (left side of Eq. 3), below it the sum of the losses' own variances "
            "(right side); means over seeds.",
            *failures(study),
        ),
    )


def gradient_variances(study: StudyRecord, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of Eq. 3, each [seeds, stages]; [0, 0] where none was measured.

    The first is the variance of the summed loss's gradient, the second the sum over losses of
    the variances of their own gradients.
    """
    measured = [row["gradient_variance"] for row in study.done(arm).values()]
    measured = [one for one in measured if one]
    if not measured:
        return np.zeros((0, 0)), np.zeros((0, 0))
    total = np.array([one["stages"] for one in measured], dtype=float)
    return total, np.array([one["losses"] for one in measured], dtype=float).sum(axis=2)


def _variance_rows(study: StudyRecord, arm: Arm, exits: int) -> list[list[str]]:
    names = ("gradient variance", "sum of the losses' variances")
    rows = []
    for name, values in zip(names, gradient_variances(study, arm), strict=True):
        texts = [f"{value:.3g}" for value in mean_and_std(values)[0]]
        rows.append([name, EMPTY, *padded(texts, exits)])
    return rows


def distillation_table(study: StudyRecord) -> StudyTable:
    """One row per setting, the best on validation images first, those without a run last."""
    ranked = ranked_settings(study)
    unrun = [arm for arm in study.arms if not study.done(arm)]
    rows = [_setting_row(study, rank, arm) for rank, arm in enumerate(ranked, start=1)]
    rows += [_setting_row(study, None, arm) for arm in unrun]
    columns = ["rank", "arm", *SETTINGS.values(), "seeds done", "validation", "test", "to baseline"]
    return StudyTable(
        heading=f"One-for-all distillation ({study.title})",
        mark=study.mark(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            "Top-1 (%), mean over exits, then mean ± sample standard deviation over seeds; "
            "differences are paired test top-1, seed by seed. The order is that of validation "
            "images: test images choose nothing. The paper states neither alpha nor the "
            "temperature.",
            nearly_best(study),
            *failures(study),
        ),
    )


def mean_over_exits(values: np.ndarray) -> np.ndarray:
    """[seeds, exits] -> [seeds]; empty of none."""
    return values.mean(axis=1) if values.size else np.zeros(0)


def ranked_settings(study: StudyRecord) -> list[Arm]:
    """The arms with runs that are done, by falling validation top-1 (mean over exits, seeds)."""
    done = [arm for arm in study.arms if study.done(arm)]
    return sorted(done, key=lambda arm: -_validation(study, arm).mean())


def nearly_best(study: StudyRecord) -> str:
    """How many settings are as good as the best, as far as seeds can tell; one sentence."""
    ranked = ranked_settings(study)
    if not ranked:
        return "No setting has been run yet."
    means = [_validation(study, arm).mean() for arm in ranked]
    _, deviation = mean_and_std(_validation(study, ranked[0]))
    if np.isnan(deviation):
        return (
            f"The best setting, {ranked[0].label}, has one seed: its standard deviation is unknown."
        )
    near = sum(mean >= means[0] - deviation for mean in means)
    return (
        f"{near} of {len(ranked)} settings (the best included) lie within one standard deviation "
        f"over seeds ({deviation:.2f} points) of the best, {ranked[0].label}, on validation images."
    )


def _validation(study: StudyRecord, arm: Arm) -> np.ndarray:
    return mean_over_exits(study.top1(arm, "validation"))


def _setting_row(study: StudyRecord, rank: int | None, arm: Arm) -> list[str]:
    values = (
        _validation(study, arm),
        mean_over_exits(study.top1(arm)),
        mean_over_exits(study.differences(arm)),
    )
    texts = [mean_text(*mean_and_std(v), difference=i == 2) for i, v in enumerate(values)]
    settings = [setting_text(arm.overrides.get(name)) for name in SETTINGS]
    return [str(rank or EMPTY), arm.label, *settings, study.state(arm), *texts]


def setting_text(value: object) -> str:
    """A config value as a reader writes it; nothing of None."""
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
