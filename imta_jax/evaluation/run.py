"""The evaluation of a trained run: from its checkpoint to `results.json` and what lies beside it.

Thresholds and the choice of operating points see validation images only; test images are looked at
once, at the end. Results are written last and whole, so that their presence means "done".
"""

import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.data import Dataset, HostPipeline, evaluation_images
from imta_jax.distributed import data_mesh, is_first_process
from imta_jax.evaluation.budget import (
    Decisions,
    budget_curve,
    decisions,
)
from imta_jax.evaluation.calibration import calibration_errors, reliability
from imta_jax.evaluation.collect import collect_predictions
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
    correct_in_top,
    predicted,
    save_predictions,
)
from imta_jax.evaluation.samples import budget_prefix, write_samples
from imta_jax.evaluation.thresholds import geometric_quota
from imta_jax.models import MultiExitClassifier
from imta_jax.models.costs import ExitCosts, exit_costs
from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json
from imta_jax.training import (
    check_which,
    evaluation_batch_size,
    last_phase,
    load_classifier,
    read_meta,
)

_log = logging.getLogger(__name__)

# Points per method in the report's figure of threshold methods, besides the reported budgets.
_FIGURE_BUDGETS = 12


def evaluation_is_finished(workdir: Path) -> bool:
    """Whether `results.json`, which is written last, is there."""
    return (workdir / "results.json").exists()


def check_evaluation_config(config: Mapping[str, Any]) -> None:
    """Checks `config.evaluation` before anything is trained; computes nothing.

    Raises:
      ValueError: names what does not fit; batch size: `training.check_training_config`.
    """
    settings = config["evaluation"]
    check_which("config.evaluation.checkpoint", settings["checkpoint"])
    if len(settings["quotas"]) == 0:
        raise ValueError("config.evaluation.quotas is empty; expected e.g. (0.5, 1.0, 2.0)")
    geometric_quota(np.asarray(settings["quotas"]), num_exits=1)
    for budget in settings["reported_budgets"]:
        budget_prefix(budget)
    for field, least in (("calibration_bins", 1), ("gallery_images", 0)):
        if settings[field] < least:
            raise ValueError(
                f"config.evaluation.{field} must be at least {least}; found {settings[field]}"
            )


def evaluate(config: Mapping[str, Any], dataset: Dataset, workdir: Path) -> dict[str, Any]:
    """Evaluates a trained run adaptively and writes what DESIGN calls its evaluation.

    Writes `evaluation/logits_{validation,test}.npz`, `samples.parquet`, `gallery.npz`,
    `calibration.npz` and, last, `results.json`.

    Args:
      config: the run's config.
      dataset: its data.
      workdir: its folder.

    Returns:
      What `results.json` holds. Of several processes the first one writes.
    """
    settings, folder = config["evaluation"], workdir / "evaluation"
    phase = last_phase(config)
    classifier, _ = load_classifier(workdir / phase, settings["checkpoint"])
    costs = exit_costs(classifier)
    validation, test = (
        _predictions(config, dataset, classifier, split, folder) for split in ("validation", "test")
    )
    curve = budget_curve(validation, test, costs.macs, quotas=np.asarray(settings["quotas"]))
    rows = curve.rows("mean_macs")
    points = operating_points(rows, costs.macs[-1])
    row_of = dict(zip(points, rows, strict=True))
    reported = _reported_points(points, settings["reported_budgets"])
    results = {
        "dataset": describe_data(dataset),
        "phases": _describe_phases(config, workdir),
        "environment": _describe_environment(config, phase),
        "exits": exit_rows(validation, test, costs, settings["calibration_bins"]),
        "budget_curve": rows,
        "reported_budgets": [{"budget": b, **row_of[p]} for b, p in reported.items()],
        "threshold_methods": _compare(validation, test, costs, settings),
    }
    if is_first_process():
        chosen = _decide(test, costs, {b: p.thresholds for b, p in reported.items()})
        write_samples(
            folder / "samples.parquet",
            index=np.arange(len(test.labels)),
            labels=test.labels,
            decisions_by_budget=chosen,
        )
        even = np.abs(curve.quota - 1).argmin()  # images spread evenly over the exits
        spread = _decide(test, costs, {1.0: curve.thresholds[even]})[1.0]
        _write_gallery(folder, dataset, test, spread, settings["gallery_images"])
        _write_calibration(folder, test, settings["calibration_bins"])
        write_json(workdir / "results.json", results)
    return results


def _predictions(
    config: Mapping[str, Any],
    dataset: Dataset,
    classifier: MultiExitClassifier,
    split: str,
    folder: Path,
) -> Predictions:
    """Logits of a split, saved on the way."""
    predictions = split_predictions(config, dataset, classifier, split)
    if is_first_process():
        save_predictions(folder / f"logits_{split}.npz", predictions)
    top1 = " ".join(f"{value:.1f}" for value in anytime_accuracy(predictions))
    _log.info("evaluation: %s top-1 per exit %s", split, top1)
    return predictions


def split_predictions(
    config: Mapping[str, Any], dataset: Dataset, classifier: MultiExitClassifier, split: str
) -> Predictions:
    """Logits [E, N, K] and labels [N] of a split, on all devices, as a run's config wants it.

    Args:
      config: a whole config.
      dataset: its data.
      classifier: any multi-exit classifier.
      split: "train", "validation" or "test".

    Raises:
      ValueError: a batch size that the devices do not divide.
    """
    mesh, settings = data_mesh(), config["data"]
    return collect_predictions(
        classifier,
        dataset.splits[split],
        mean=dataset.mean,
        std=dataset.std,
        batch_size=evaluation_batch_size(config, mesh),
        mesh=mesh,
        preprocessing=dataset.preprocessing,
        pipeline=settings["pipeline"],
        host=HostPipeline.from_config(settings),
    )


def _reported_points(
    points: tuple[OperatingPoint, ...], budgets: tuple[float, ...]
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


def _compare(
    validation: Predictions, test: Predictions, costs: ExitCosts, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """All ways to choose thresholds, at the reported budgets and at some between for a figure.

    None with one exit, where all ways are one.
    """
    if len(costs.macs) == 1:
        return None
    share = costs.macs[0] / costs.macs[-1]
    reported = [budget for budget in settings["reported_budgets"] if budget >= share]
    budgets = sorted({*np.linspace(share, 1, _FIGURE_BUDGETS).tolist(), *reported})
    return comparison_record(validation, test, costs, budgets, quotas=settings["quotas"])


def _decide(
    test: Predictions, costs: ExitCosts, thresholds: Mapping[float, np.ndarray]
) -> dict[float, Decisions]:
    sure, classes = confidence(test.logits), predicted(test.logits)
    return {b: decisions(sure, classes, costs.macs, t) for b, t in thresholds.items()}


def exit_rows(
    validation: Predictions, test: Predictions, costs: ExitCosts, bins: int
) -> list[dict[str, Any]]:
    """What `results.json` says of each exit by itself: costs, accuracies in percent, calibration.

    Args:
      validation: logits and labels of the validation images.
      test: of the test images.
      costs: of the network.
      bins: of the calibration error.
    """
    columns = {
        "macs": costs.macs,
        "published_ops": costs.published_ops,
        "params": costs.params,
        "top1": anytime_accuracy(test),
        "top5": anytime_accuracy(test, 5),
        "validation_top1": anytime_accuracy(validation),
        "ece": calibration_errors(
            confidence(test.logits), correct_in_top(test.logits, test.labels, 1), bins
        ),
    }
    return [
        {"exit": i + 1, **{name: column[i].item() for name, column in columns.items()}}
        for i in range(len(costs.macs))
    ]


def _write_gallery(
    folder: Path,
    dataset: Dataset,
    test: Predictions,
    decided: Decisions,
    per_side: int,
) -> None:
    """Images that leave at the first exit beside images that need the last."""
    last = len(test.logits) - 1
    sides = [np.flatnonzero(decided.exit == e)[:per_side] for e in (0, last)]
    index = np.concatenate(sides)
    np.savez(
        folder / "gallery.npz",
        images=evaluation_images(dataset.splits["test"], dataset.preprocessing, index),
        index=index,
        label=test.labels[index],
        prediction=decided.prediction[index],
        exit=decided.exit[index],
        confidence=decided.confidence[index],
        first=np.arange(len(index)) < len(sides[0]),
    )


def _write_calibration(folder: Path, test: Predictions, bins: int) -> None:
    """Reliability diagrams of all exits: confidence, accuracy and count per bin, [E, bins]."""
    sure, correct = confidence(test.logits), correct_in_top(test.logits, test.labels, 1)
    diagrams = [reliability(c, r, bins) for c, r in zip(sure, correct, strict=True)]
    names = ("confidence", "accuracy", "count")
    np.savez(
        folder / "calibration.npz",
        **{name: np.stack([getattr(d, name) for d in diagrams]) for name in names},
    )


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What `results.json` says of the data."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "statistics_source": dataset.statistics_source,
        "preprocessing": dataset.preprocessing.describe(),
        "skipped": dataset.skipped,
        "note": "thresholds chosen on validation images held out of the training images",
    }


def _describe_phases(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """What each phase did, from its metrics; None for a phase that was left out."""
    described: dict[str, Any] = {}
    for name in ("phase_one", "phase_two"):
        described[name] = None
        if config[name]["total_epochs"] > 0:
            lines = (workdir / name / "metrics.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            trained = [row for row in rows if row["split"] == "train"]
            per_epoch = trained[0]["step"]
            images = per_epoch * config[name]["batch_size"]
            described[name] = {
                "epochs": trained[-1]["epoch"],
                "steps": trained[-1]["step"],
                # An epoch that was stopped after its last step went on without any: it has no pace.
                "seconds": sum(
                    images / row["images_per_second"] for row in trained if row["images_per_second"]
                ),
                "final_learning_rate": trained[-1]["learning_rate"],
                "checkpoint_epoch": read_meta(workdir / name, config["evaluation"]["checkpoint"])[
                    "epoch"
                ],
            }
    return described


def _describe_environment(config: Mapping[str, Any], phase: str) -> dict[str, Any]:
    return {
        **environment_record(),
        "seed": config["seed"],
        "evaluated_phase": phase,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
