"""A finished run: the network that it evaluated, and thresholds for its budgets.

`AdaptiveClassifier.from_run` and `export_run` load runs through this module.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imta_jax.config import DataConfig, RunConfig
from imta_jax.data import EvaluationTransform, PaddedCrop, load_dataset, preprocessing_from
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict
from imta_jax.errors import InputError, MissingFileError, UserError
from imta_jax.evaluation import (
    ExitCosts,
    OperatingPoint,
    best_within_budget,
    exit_costs,
    operating_points,
    pareto_front,
    read_budget_curve,
)
from imta_jax.evaluation.exit_scores import read_exit_rule
from imta_jax.evaluation.results import evaluated_phase, read_results
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.json_files import read_json
from imta_jax.runtime.paths import local_path
from imta_jax.techniques.exit_rules import ExitRule
from imta_jax.training import load_classifier

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained and evaluated.

    Attributes:
      config: content of `config.json`.
      results: content of `results.json`.
      classifier: the network that was evaluated, in inference mode.
      meta: the metadata of its checkpoint.
      costs: costs of its exits.
      points: thresholds for several budgets, cheapest first.
      transform: how its evaluation made the network's input from an image.
      exit_rule: exit rule whose scores the thresholds apply to.
    """

    config: RunConfig
    results: Mapping[str, Any]
    classifier: MultiExitClassifier
    meta: Mapping[str, Any]
    costs: ExitCosts
    points: tuple[OperatingPoint, ...]
    transform: EvaluationTransform
    exit_rule: ExitRule

    def point_for(self, budget: float) -> OperatingPoint:
        """Returns the most accurate point that costs at most `budget`.

        Args:
          budget: mean multiply-adds per image, as a fraction of the full network's.

        Raises:
          ValueError: every point costs more.
        """
        return best_within_budget(self.points, budget)


def load_finished_run(workdir: str | Path) -> FinishedRun:
    """Loads the network that a run evaluated and its operating points.

    Args:
      workdir: folder of a run that was trained and evaluated.

    Raises:
      FileNotFoundError: the run is not finished.
      ValueError: `results.json` is of another checkpoint or another network.
    """
    workdir = local_path("workdir", workdir)
    config = _config(workdir / "config.json")
    results = _read(workdir / "results.json", read_results)
    phase = evaluated_phase(results, workdir / "results.json")
    classifier, meta = load_classifier(workdir / phase, config.evaluation.checkpoint)
    costs = exit_costs(classifier)
    _check_results(workdir / "results.json", results, phase, meta, costs)
    points = pareto_front(operating_points(read_budget_curve(workdir), costs.macs[-1]))
    transform = _transform(config.data, meta)
    rule = read_exit_rule(results)
    return FinishedRun(config, results, classifier, meta, costs, points, transform, rule)


def _config(path: Path) -> RunConfig:
    fields = _read(path, read_json)
    try:
        return RunConfig.from_mapping(fields)
    except InputError as error:
        raise InputError(f"{path} is incomplete or of another version: {error}") from error


def _transform(config: DataConfig, meta: Mapping[str, Any]) -> EvaluationTransform:
    """The transform that the checkpoint describes.

    Checkpoints of earlier versions do not record the size of images before padding. For them it is
    read from the run's dataset.
    """
    shape = tuple(meta["image_shape"])
    if "evaluation_transform" in meta:
        return transform_from_dict(meta["evaluation_transform"], shape, version=2)
    preprocessing = preprocessing_from(config)
    if isinstance(preprocessing, PaddedCrop):
        preprocessing = replace(preprocessing, source_size=_source_size(config, shape))
    return preprocessing.evaluation_transform(shape, meta["mean"], meta["std"])


def _source_size(config: DataConfig, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """(height, width) of the dataset's images before padding; None if it cannot be read."""
    try:
        dataset = load_dataset(replace(config, download=False))
    except (UserError, OSError) as error:
        reason = str(error)
    else:
        if dataset.image_shape == shape and isinstance(dataset.preprocessing, PaddedCrop):
            return dataset.preprocessing.source_size
        reason = f"its images have the shape {dataset.image_shape}"
    _log.warning(
        "the checkpoint does not record whether images were padded to %s, and the dataset "
        "config.data.source=%s cannot be used to find out (%s); only images of this size will be "
        "accepted",
        shape,
        config.source,
        reason,
    )
    return None


def _check_results(
    path: Path, results: Mapping[str, Any], phase: str, meta: Mapping[str, Any], costs: ExitCosts
) -> None:
    """Checks that the results are of the checkpoint that was loaded."""
    evaluated = results["phases"][phase].get("checkpoint_epoch")
    if evaluated != meta["epoch"]:
        raise InputError(
            f"{path}: checkpoint_epoch of {phase} is {evaluated}, expected {meta['epoch']}, the "
            "epoch of the checkpoint; delete the file and run --mode=evaluate"
        )
    macs = [row["macs"] for row in results["exits"]]
    if macs != costs.macs.tolist():
        raise InputError(
            f"{path}: exits.macs is {macs}, expected {costs.macs.tolist()}, the costs of the "
            "checkpoint's network; delete the file and run --mode=evaluate"
        )


def _read(path: Path, read: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist; expected the folder of a finished run: train and evaluate it "
            f"first (launch.py --workdir={path.parent})"
        )
    return read(
        path, "delete it and start launch.py with the run's config and this --workdir again"
    )
