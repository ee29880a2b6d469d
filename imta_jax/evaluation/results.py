"""Parts of a run's `results.json`, written and read without JAX."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imta_jax.errors import InputError, MissingFileError
from imta_jax.evaluation.budget import budget_curve
from imta_jax.evaluation.calibration import calibration_errors, failure_prediction_auroc
from imta_jax.evaluation.predictions import (
    Predictions,
    anytime_accuracy,
    confidence,
    correct_in_top,
    load_predictions,
)
from imta_jax.runtime.json_files import read_json
from imta_jax.runtime.paths import local_path

if TYPE_CHECKING:
    from imta_jax.data import Dataset
    from imta_jax.models.costs import ExitCosts

_SECTIONS = {
    "dataset": dict,
    "phases": dict,
    "environment": dict,
    "exits": list,
    "budget_curve": list,
}


_Columns = Mapping[str, type | tuple[type, ...]]
_NUMBER = (int, float)
# Of each row of a section.
_COLUMNS: Mapping[str, _Columns] = {
    "exits": {"macs": _NUMBER},
    "budget_curve": {
        "quota": _NUMBER,
        "thresholds": list,
        "mean_macs": _NUMBER,
        "validation_top1": _NUMBER,
        "top1": _NUMBER,
        "exit_fractions": list,
    },
    "reported_budgets": {"budget": _NUMBER},
}


def missing_sections(results: Mapping[str, Any]) -> list[str]:
    """Names of the required sections and columns that are missing, empty or of another type."""
    missing = [
        name
        for name, kind in _SECTIONS.items()
        if not isinstance(results.get(name), kind) or not results[name]
    ]
    present = [name for name in _COLUMNS if name not in missing and results.get(name)]
    return missing + [
        column
        for name in present
        for column in _missing_columns(name, results[name], _COLUMNS[name])
    ]


def _missing_columns(name: str, rows: Any, columns: _Columns) -> list[str]:
    if not isinstance(rows, list):
        return [name]
    return [
        f"{name}[{i}].{column}"
        for i, row in enumerate(rows)
        for column, kind in columns.items()
        if not isinstance(row, Mapping) or not isinstance(row.get(column), kind)
    ]


def read_results(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a `results.json`.

    Args:
      path: the file, which exists.
      remedy: what to do if it is damaged or incomplete, for messages.

    Raises:
      InputError: it is damaged, or lacks a section.
    """
    results = read_json(path, remedy)
    if missing := missing_sections(results):
        raise InputError(f"{path} is incomplete: missing {', '.join(missing)}; {remedy}")
    return results


def read_evaluated_results(workdir: Path) -> dict[str, Any]:
    """Reads the `results.json` of a run's folder.

    Raises:
      MissingFileError: the run was not evaluated.
      InputError: the file is damaged or incomplete.
    """
    path = workdir / "results.json"
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist: the run was not evaluated. Run --mode=evaluate first"
        )
    return read_results(path, "delete it and run --mode=evaluate")


def evaluated_phase(results: Mapping[str, Any], path: Path) -> str:
    """The name of the phase whose network was evaluated.

    Args:
      results: return value of `read_results`.
      path: the file, for messages.

    Raises:
      InputError: the section `environment` does not name a phase of the section `phases`.
    """
    phase = results["environment"].get("evaluated_phase")
    phases = [name for name, record in results["phases"].items() if isinstance(record, Mapping)]
    if phase not in phases:
        raise InputError(
            f"{path}: environment.evaluated_phase is {phase!r}, expected one of"
            f" {', '.join(phases)}; delete the file and run --mode=evaluate"
        )
    return phase


def dataset_record(dataset: "Dataset") -> dict[str, Any]:
    """The `dataset` section: the data that a network was trained and evaluated on."""
    held_out = "validation" in dataset.held_out
    validation = (
        "validation images held out of the training images"
        if held_out
        else "the source's own validation split"
    )
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "statistics_source": dataset.statistics_source,
        "preprocessing": dataset.preprocessing.describe(),
        "skipped": dataset.skipped,
        "note": f"thresholds chosen on {validation}",
    }


def exit_rows(
    validation: Predictions, test: Predictions, costs: "ExitCosts", bins: int
) -> list[dict[str, Any]]:
    """The `exits` section: costs, accuracies in percent and calibration of each exit.

    Args:
      validation: logits and labels of the validation images.
      test: logits and labels of the test images.
      costs: costs of the network's exits.
      bins: number of bins of the expected calibration error.

    Returns:
      One row per exit. `auroc` is None where all predictions are correct or all are wrong.
    """
    outcomes = confidence(test.logits), correct_in_top(test.logits, test.labels, 1)
    columns = {
        "macs": costs.macs,
        "published_ops": costs.published_ops,
        "params": costs.params,
        "top1": anytime_accuracy(test),
        "top5": anytime_accuracy(test, 5),
        "validation_top1": anytime_accuracy(validation),
        "ece": calibration_errors(*outcomes, bins),
        "auroc": failure_prediction_auroc(*outcomes),
    }
    return [
        {
            "exit": i + 1,
            **{name: _json_number(column[i].item()) for name, column in columns.items()},
        }
        for i in range(len(costs.macs))
    ]


def _json_number(value: float) -> float | None:
    """The number; None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def read_budget_curve(workdir: str | Path) -> list[dict[str, Any]]:
    """The `budget_curve` section of an evaluated run, with all keys of `BudgetCurve.rows`.

    A `results.json` written before the rows had validation costs is completed from the run's saved
    logits.

    Args:
      workdir: folder of a run that was evaluated.

    Returns:
      The rows, with costs in multiply-adds (`mean_macs`).

    Raises:
      FileNotFoundError: the run was not evaluated.
      ValueError: a file of the evaluation is damaged.
    """
    workdir = local_path("workdir", workdir)
    results = read_evaluated_results(workdir)
    rows = results["budget_curve"]
    if all("validation_exit_fractions" in row for row in rows):
        return rows
    macs = [row["macs"] for row in results["exits"]]
    validation, test = (_logits(workdir, split) for split in ("validation", "test"))
    quotas = [row["quota"] for row in rows]
    return budget_curve(validation, test, macs, quotas=quotas).rows("mean_macs")


def _logits(workdir: Path, split: str) -> Predictions:
    try:
        return load_predictions(workdir / "evaluation" / f"logits_{split}.npz")
    except (InputError, FileNotFoundError) as error:
        raise InputError(
            f"{error}; to write it again, delete {workdir / 'results.json'} and run --mode=evaluate"
        ) from error
