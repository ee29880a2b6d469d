"""Tables of the studies that the paper has no table for: budgets, equilibrium and distillation."""

import numpy as np
import pandas as pd

from imta_jax.report.style import format_count
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.curves import curve_at, curve_gains
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std
from imta_jax.studies.report.table import (
    EMPTY,
    SPREAD_NOTE,
    StudyTable,
    accuracy_rows,
    exit_columns,
    failures,
    mean_texts,
    padded,
)

COST_FRACTIONS = (0.25, 0.5, 0.75)
SETTINGS = {
    "phase_two.teacher": "teacher",
    "phase_two.reduction": "KL",
    "phase_two.temperature_squared": "times T²",
    "phase_two.alpha": "alpha",
    "phase_two.temperature": "temperature",
}


def budget_table(study: StudyRecord) -> StudyTable:
    """One row per network and variant: cost, last exit, and top-1 at fractions of the full cost."""
    rows = [_budget_row(study, variant) for variant in study.variants]
    columns = ["variant", "network", "finished seeds", "full cost", "exits", "last exit"]
    columns += ["last exit minus baseline"]
    columns += [f"top-1 at {fraction:.0%} of the cost" for fraction in COST_FRACTIONS]
    columns += ["mean gain over budgets", f"gain at {format_count(claimed_cost(study))}"]
    notes = [
        SPREAD_NOTE,
        "Gains are differences between budget curves at equal mean cost, over the baseline of the "
        "same network: the mean over all budgets, and the gain at the cost for which the paper "
        "states one (empty if the network does not reach that cost).",
    ]
    if claim := paper.BUDGET_CLAIMS.get(study.known_dataset or ""):
        notes.append(f"The paper's claim, {claim}")
    return StudyTable(
        heading=f"Budgets ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(*notes, *failures(study)),
    )


def claimed_cost(study: StudyRecord) -> float:
    """Mean cost at which the paper states a gain: 1e8, on ImageNet 1e9 (printed as 1e8)."""
    return 1e9 if study.known_dataset == "imagenet" else 1e8


def gains_at(study: StudyRecord, variant: VariantRecord, cost: float) -> np.ndarray:
    """A variant's gains over its baseline at a mean cost, [seeds]; [0] outside the curves."""
    costs, gains = curve_gains(study, variant)
    if not len(costs) or not costs[0] <= cost <= costs[-1]:
        return np.zeros(0)
    return np.array([np.interp(cost, costs, gain) for gain in gains])


def _gain_texts(study: StudyRecord, variant: VariantRecord) -> list[str]:
    gains = curve_gains(study, variant)[1]
    averaged = gains.mean(axis=1) if gains.size else np.zeros(0)
    at_claimed_cost = gains_at(study, variant, claimed_cost(study))
    columns = (averaged, at_claimed_cost)
    return [mean_texts(values[:, None], difference=True)[0] for values in columns]


def _budget_row(study: StudyRecord, variant: VariantRecord) -> list[str]:
    rows = study.finished(variant)
    texts = [variant.label, variant.network, study.status(variant)]
    if not rows:
        return padded(texts, 9 + len(COST_FRACTIONS))
    full = next(iter(rows.values()))["exits"][-1]["macs"]
    exits = study.top1(variant).shape[1]
    last = mean_texts(study.top1(variant)[:, -1:])
    difference = mean_texts(study.differences(variant)[:, -1:], difference=True) or [EMPTY]
    accuracies = np.array([curve_at(row, full * np.array(COST_FRACTIONS)) for row in rows.values()])
    # A network with one exit has one cost and no smaller budgets.
    partial = mean_texts(accuracies) if exits > 1 else [EMPTY] * len(COST_FRACTIONS)
    gains = _gain_texts(study, variant)
    return [*texts, format_count(full), str(exits), *last, *difference, *partial, *gains]


def equilibrium_table(study: StudyRecord) -> StudyTable:
    """Variants x exits: top-1, differences, and the variances of Eq. 3 at each stage's output."""
    exits = max([1, *(study.top1(variant).shape[1] for variant in study.variants)])
    rows = [
        [variant.label, *row]
        for variant in study.variants
        for row in [
            *accuracy_rows(study, variant, exits, "top-1"),
            *_variance_rows(study, variant, exits),
        ]
    ]
    columns = ["variant", "row", "finished seeds", *exit_columns(exits)]
    return StudyTable(
        heading=f"Gradient equilibrium ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            SPREAD_NOTE,
            "Gradient variance: variance over images of the summed loss's gradient with respect to "
            "the output of a stage (left side of Eq. 3). The row below has the sum of the "
            "variances of the single losses' gradients (right side). Both are means over seeds.",
            *failures(study),
        ),
    )


def gradient_variances(study: StudyRecord, variant: VariantRecord) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of Eq. 3, each [seeds, stages]; [0, 0] if not measured.

    Returns:
      The variance of the summed loss's gradient, and the sum over losses of the variances of
      their own gradients.
    """
    results = [row["gradient_variance"] for row in study.finished(variant).values()]
    results = [result for result in results if result]
    if not results:
        return np.zeros((0, 0)), np.zeros((0, 0))
    total = np.array([result["stages"] for result in results], dtype=float)
    return total, np.array([result["losses"] for result in results], dtype=float).sum(axis=2)


def _variance_rows(study: StudyRecord, variant: VariantRecord, exits: int) -> list[list[str]]:
    names = ("gradient variance", "sum of the losses' variances")
    rows = []
    for name, values in zip(names, gradient_variances(study, variant), strict=True):
        texts = [f"{value:.3g}" for value in mean_and_std(values)[0]]
        rows.append([name, EMPTY, *padded(texts, exits)])
    return rows


def distillation_table(study: StudyRecord) -> StudyTable:
    """One row per setting, the best on validation images first, those without a run last."""
    ranked = ranked_settings(study)
    unrun = [variant for variant in study.variants if not study.finished(variant)]
    rows = [_setting_row(study, rank, variant) for rank, variant in enumerate(ranked, start=1)]
    rows += [_setting_row(study, None, variant) for variant in unrun]
    columns = ["rank", "variant", *SETTINGS.values(), "finished seeds", "validation", "test"]
    columns += ["test minus baseline"]
    return StudyTable(
        heading=f"One-for-all distillation ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            "Top-1 (%) averaged over exits, mean ± sample standard deviation over seeds. "
            "Differences of test top-1 are paired by seed. Settings are ranked by validation "
            "images; test images select nothing. The paper states neither alpha nor the "
            "temperature.",
            nearly_best(study),
            *failures(study),
        ),
    )


def mean_over_exits(values: np.ndarray) -> np.ndarray:
    """[seeds, exits] -> [seeds]; [0] without values."""
    return values.mean(axis=1) if values.size else np.zeros(0)


def ranked_settings(study: StudyRecord) -> list[VariantRecord]:
    """Variants with finished runs, by falling mean validation top-1 over exits and seeds."""
    finished = [variant for variant in study.variants if study.finished(variant)]
    return sorted(finished, key=lambda variant: -_validation(study, variant).mean())


def nearly_best(study: StudyRecord) -> str:
    """One sentence with the number of settings within one standard deviation of the best."""
    ranked = ranked_settings(study)
    if not ranked:
        return "No setting has been run yet."
    means = [_validation(study, variant).mean() for variant in ranked]
    _, deviation = mean_and_std(_validation(study, ranked[0]))
    best = ranked[0].label
    if np.isnan(deviation):
        return f"The best setting, {best}, has one seed: its standard deviation is unknown."
    near = sum(mean >= means[0] - deviation for mean in means)
    return (
        f"{near} of {len(ranked)} settings (the best included) are within one standard deviation "
        f"over seeds ({deviation:.2f} points) of the best, {best}, on validation images."
    )


def _validation(study: StudyRecord, variant: VariantRecord) -> np.ndarray:
    return mean_over_exits(study.top1(variant, "validation"))


def _setting_row(study: StudyRecord, rank: int | None, variant: VariantRecord) -> list[str]:
    values = (
        _validation(study, variant),
        mean_over_exits(study.top1(variant)),
        mean_over_exits(study.differences(variant)),
    )
    texts = [mean_texts(v[:, None], difference=i == 2)[0] for i, v in enumerate(values)]
    settings = [setting_text(variant.overrides.get(name)) for name in SETTINGS]
    return [str(rank or EMPTY), variant.label, *settings, study.status(variant), *texts]


def setting_text(value: object) -> str:
    """A config value as text: "yes" or "no" for booleans, empty for None."""
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
