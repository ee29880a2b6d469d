"""A finished run: the network that it evaluated, and thresholds for its budgets.

`AdaptiveClassifier.from_run` and `export_run` load runs through this module.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imta_jax.config import RunConfig
from imta_jax.errors import InputError, MissingFileError
from imta_jax.evaluation import (
    ExitCosts,
    OperatingPoint,
    best_within_budget,
    exit_costs,
    operating_points,
    pareto_front,
    read_budget_curve,
)
from imta_jax.models import MultiExitClassifier
from imta_jax.training import load_classifier


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained and evaluated.

    Attributes:
      config: from `config.json`.
      results: from `results.json`.
      classifier: the network that was evaluated, in inference mode.
      meta: the metadata of its checkpoint.
      costs: of its exits.
      points: thresholds for several budgets, cheapest first.
    """

    config: RunConfig
    results: Mapping[str, Any]
    classifier: MultiExitClassifier
    meta: Mapping[str, Any]
    costs: ExitCosts
    points: tuple[OperatingPoint, ...]

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
    workdir = Path(workdir)
    config = RunConfig.from_mapping(_read_json(workdir / "config.json"))
    results = _read_json(workdir / "results.json")
    phase = results["environment"]["evaluated_phase"]
    classifier, meta = load_classifier(workdir / phase, config.evaluation.checkpoint)
    costs = exit_costs(classifier)
    _check_results(workdir / "results.json", results, phase, meta, costs)
    points = pareto_front(operating_points(read_budget_curve(workdir), costs.macs[-1]))
    return FinishedRun(config, results, classifier, meta, costs, points)


def _check_results(
    path: Path, results: Mapping[str, Any], phase: str, meta: Mapping[str, Any], costs: ExitCosts
) -> None:
    """Checks that the results are of the checkpoint that was loaded."""
    evaluated = results["phases"][phase]["checkpoint_epoch"]
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; expected the folder of a finished run: train and evaluate it "
            f"first (launch.py --workdir={path.parent})"
        )
    return json.loads(path.read_text())
