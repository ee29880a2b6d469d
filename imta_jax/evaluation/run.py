"""Evaluation of a trained run: from its checkpoint to `results.json` and the files next to it.

Thresholds and operating points are chosen on validation images only. Test images are only measured.
`results.json` is written last and atomically, so its presence means that the evaluation is
finished.
"""

import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from imta_jax.config import PHASES, EvaluationConfig, RunConfig
from imta_jax.data import Dataset
from imta_jax.errors import MissingFileError
from imta_jax.evaluation.budget import Decisions, curve_of_outcomes, decisions
from imta_jax.evaluation.collect import split_predictions
from imta_jax.evaluation.exit_scores import exit_rule_record, fitted_exit_rule, outcomes_of_rule
from imta_jax.evaluation.methods.comparison_record import comparison_record
from imta_jax.evaluation.operating_points import (
    OperatingPoint,
    best_within_budget,
    operating_points,
)
from imta_jax.evaluation.predictions import (
    Predictions,
    anytime_accuracy,
    confidence,
    predicted,
    save_predictions,
)
from imta_jax.evaluation.report_arrays import write_calibration, write_gallery
from imta_jax.evaluation.results import dataset_record, exit_rows, missing_sections
from imta_jax.evaluation.samples import write_samples
from imta_jax.models import MultiExitClassifier
from imta_jax.models.costs import ExitCosts, exit_costs
from imta_jax.runtime.agreement import run_in_first_process
from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.runtime.metric_rows import read_metric_rows
from imta_jax.runtime.run_header import code_commit, command_line
from imta_jax.training import last_phase, load_classifier, read_meta
from imta_jax.training.metrics import training_seconds
from imta_jax.training.setup import phase_settings

_log = logging.getLogger(__name__)

# Budgets per method in the report's figure, in addition to the reported budgets.
_FIGURE_BUDGETS = 12


def evaluation_is_finished(workdir: Path) -> bool:
    """Whether `results.json`, which is written last, exists and is complete."""
    path = workdir / "results.json"
    results = read_json_or_none(path, "the run is evaluated again")
    missing = [] if results is None else missing_sections(results)
    if missing:
        _log.warning(
            "%s is incomplete: missing %s; the run is evaluated again", path, ", ".join(missing)
        )
    return results is not None and not missing


def evaluate(config: RunConfig, dataset: Dataset, workdir: Path) -> dict[str, Any]:
    """Evaluates a trained run adaptively.

    Writes `evaluation/logits_{validation,test}.npz`, `samples.parquet`, `gallery.npz`,
    `calibration.npz` and, last, `results.json`. With several processes the first one writes.

    Args:
      config: config of the run.
      dataset: dataset of the run.
      workdir: folder of the run.

    Returns:
      The content of `results.json`.
    """
    settings, folder = config.evaluation, workdir / "evaluation"
    phase = last_phase(config)
    classifier, _ = load_classifier(workdir / phase, settings.checkpoint)
    costs = exit_costs(classifier)
    validation, test = (
        _saved_predictions(config, dataset, classifier, split, folder)
        for split in ("validation", "test")
    )
    rule = fitted_exit_rule(settings, validation, costs.macs)
    on_validation, on_test = outcomes_of_rule(validation, rule), outcomes_of_rule(test, rule)
    curve = curve_of_outcomes(on_validation, on_test, costs, quotas=settings.quotas)
    rows = curve.rows("mean_macs")
    points = operating_points(rows, costs.macs[-1])
    row_of = dict(zip(points, rows, strict=True))
    reported = _reported_points(points, settings.reported_budgets)
    results = {
        "dataset": dataset_record(dataset),
        "phases": {name: _phase_record(config, workdir, name) for name in PHASES},
        "environment": _environment_record(config, phase),
        "exits": exit_rows(validation, test, costs, settings.calibration_bins),
        "budget_curve": rows,
        "reported_budgets": [{"budget": b, **row_of[p]} for b, p in reported.items()],
        "threshold_methods": _compare_methods(validation, test, costs, settings),
        **exit_rule_record(rule, *validation.logits.shape[::2]),
    }

    def write_files() -> None:
        scores = on_test.confidence
        _write_samples(folder / "samples.parquet", test, scores, costs, reported)
        # Images are spread evenly over the exits at q = 1.
        spread = min(rows, key=lambda row: abs(row["quota"] - 1))["thresholds"]
        decided = _decide(test, scores, costs, spread)
        write_gallery(folder / "gallery.npz", dataset, test, decided, settings.gallery_images)
        write_calibration(folder / "calibration.npz", test, settings.calibration_bins)
        write_json(workdir / "results.json", results)

    run_in_first_process(write_files)
    return results


def _saved_predictions(
    config: RunConfig, dataset: Dataset, classifier: MultiExitClassifier, split: str, folder: Path
) -> Predictions:
    """Logits and labels of a split, after writing them to the run's folder."""
    predictions = split_predictions(config, dataset, classifier, split)
    path = folder / f"logits_{split}.npz"
    run_in_first_process(lambda: save_predictions(path, predictions))
    top1 = " ".join(f"{value:.1f}" for value in anytime_accuracy(predictions))
    _log.info("evaluation: %s top-1 per exit %s", split, top1)
    return predictions


def _reported_points(
    points: Sequence[OperatingPoint], budgets: Sequence[float]
) -> dict[float, OperatingPoint]:
    """The operating point of each reported budget; a budget below all points is skipped.

    A network with one exit has none.
    """
    reported = {}
    for budget in budgets if len(points[0].thresholds) > 1 else ():
        try:
            reported[budget] = best_within_budget(points, budget)
        except ValueError as error:
            _log.warning("budget %g is not reported: %s", budget, error)
    return reported


def _compare_methods(
    validation: Predictions, test: Predictions, costs: ExitCosts, settings: EvaluationConfig
) -> dict[str, Any] | None:
    """Comparison of threshold methods at the reported budgets and at those of the figure.

    None for a network with one exit, where all methods are equal.
    """
    if len(costs.macs) == 1:
        return None
    least = costs.macs[0] / costs.macs[-1]
    reported = [budget for budget in settings.reported_budgets if budget >= least]
    budgets = sorted({*np.linspace(least, 1, _FIGURE_BUDGETS).tolist(), *reported})
    return comparison_record(validation, test, costs, budgets, quotas=settings.quotas)


def _decide(
    test: Predictions,
    scores: Float32[np.ndarray, "E N"],
    costs: ExitCosts,
    thresholds: Sequence[float],
) -> Decisions:
    """Decisions by the scores of the exit rule, with the confidence at the exit."""
    decided = decisions(scores, predicted(test.logits), costs, thresholds)
    at_exit = confidence(test.logits)[decided.exit, np.arange(len(decided.exit))]
    return decided._replace(confidence=at_exit)


def _write_samples(
    path: Path,
    test: Predictions,
    scores: Float32[np.ndarray, "E N"],
    costs: ExitCosts,
    reported: Mapping[float, OperatingPoint],
) -> None:
    write_samples(
        path,
        index=np.arange(len(test.labels)),
        labels=test.labels,
        decisions_by_budget={
            budget: _decide(test, scores, costs, point.thresholds)
            for budget, point in reported.items()
        },
    )


def _phase_record(config: RunConfig, workdir: Path, name: str) -> dict[str, Any] | None:
    """Length and duration of a phase; None for a phase that was skipped.

    Values from `metrics.jsonl` and from checkpoints are None without these files.
    """
    phase = phase_settings(config, name)
    if phase.total_epochs == 0:
        return None
    folder = workdir / name
    rows = read_metric_rows(folder / "metrics.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    last = train[-1] if train else {"epoch": phase.total_epochs}
    validation = [row for row in rows if row["split"] == "validation"]
    early = {"stopped_early": any(row.get("stopped_early") for row in validation)}
    return {
        "epochs": last["epoch"],
        "steps": last.get("step"),
        "seconds": training_seconds(train, phase.batch_size) if train else None,
        "final_learning_rate": last.get("learning_rate"),
        "checkpoint_epoch": _checkpoint_epoch(folder, config.evaluation.checkpoint),
        **(early if phase.early_stopping_epochs else {}),
    }


def _checkpoint_epoch(folder: Path, which: str) -> int | None:
    """The epoch of a phase's checkpoint; None if there is none. Phase I may be deleted."""
    if not folder.is_dir():
        return None
    try:
        return read_meta(folder, which)["epoch"]
    except MissingFileError:
        return None


def _environment_record(config: RunConfig, phase: str) -> dict[str, Any]:
    return {
        **environment_record(),
        "seed": config.seed,
        "evaluated_phase": phase,
        "command": command_line(),
        "commit": code_commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
