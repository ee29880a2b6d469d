"""Budgets in time: milliseconds per exit on this device, and the budget curve over them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.distributed import is_first_process, wait_for_all
from imta_jax.evaluation import load_predictions, read_budget_curve, rows_with_costs
from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.exit_scores import outcomes_of_rule
from imta_jax.evaluation.exit_selection import exits_never_kept, select_exits
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.profile import StageProfile
from imta_jax.inference.finished_run import FinishedRun, load_finished_run
from imta_jax.runtime.files import write_json
from imta_jax.runtime.lock import lock_workdir

_log = logging.getLogger(__name__)
# Fractions of the full network's time for which exits are selected.
BUDGETS = tuple(n / 20 for n in range(2, 21))


def time_run(workdir: str | Path, *, profile_dir: str | Path | None = None) -> None:
    """Measures the stages of a finished run on this device and sweeps budgets in milliseconds.

    Writes `evaluation/stage_profile.json` and `evaluation/time.json`, which the report shows:
    milliseconds per image for each exit, for each budget of the geometric sweep thresholds,
    accuracy and time, and the exits at which stopping saves time (`evaluation.exit_selection`). As
    in `results.json`, thresholds are chosen on validation images.

    With several processes, the first one measures and the others wait.

    Args:
      workdir: folder of a run that was evaluated.
      profile_dir: folder of measured profiles; default ~/.cache/imta_jax/profiles.

    Raises:
      FileNotFoundError: the run was not evaluated.
      BlockingIOError: another process works in the folder.
    """
    workdir = Path(workdir)
    folder = workdir / "evaluation"
    rows = read_budget_curve(workdir)
    run = load_finished_run(workdir)
    if is_first_process():
        with lock_workdir(workdir):
            profile = _measure(run, profile_dir)
            profile.save(folder / "stage_profile.json")
            validation = load_predictions(folder / "logits_validation.npz")
            kept = _kept_exits(profile, outcomes_of_rule(validation, run.exit_rule))
            write_json(folder / "time.json", _time_results(profile, rows) | kept)
    wait_for_all("a run's stages are measured")


def _measure(run: FinishedRun, profile_dir: str | Path | None) -> StageProfile:
    """Measures the network with the default options of `AdaptiveClassifier`."""
    _log.info("time: measuring %d stages on this device", run.classifier.num_exits)
    thresholds = np.zeros(run.classifier.num_exits)  # they do not affect the profile
    adaptive = AdaptiveClassifier(
        run.classifier,
        thresholds,
        transform=run.transform,
        profile_dir=profile_dir,
        exit_rule=run.exit_rule,
    )
    return adaptive.measure()


def _kept_exits(profile: StageProfile, validation: Outcomes) -> dict[str, Any]:
    """The entries of `time.json` about the exits at which stopping saves time on this device."""
    stage_ms, stop_ms = profile.per_image_ms()
    selections = select_exits(validation, stage_ms, stop_ms, BUDGETS)
    never = exits_never_kept(selections, len(stage_ms))
    names = ", ".join(str(i + 1) for i in never) or "none"
    _log.info("time: exits at which stopping never saves time on this device: %s", names)
    rows = [
        {
            "budget_ms": selection.budget_ms,
            "kept_exits": [i + 1 for i in selection.kept],
            "thresholds": [None if np.isinf(t) else t for t in selection.thresholds],
            "mean_ms": selection.mean_ms,
            "validation_top1": selection.accuracy,
        }
        for selection in selections
    ]
    return {"exit_selections": rows, "exits_never_kept": [i + 1 for i in never]}


def _time_results(profile: StageProfile, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `time.json`: the curve over milliseconds at the fastest batch size."""
    exit_ms = profile.exit_ms()
    return {
        "device": profile.device,
        "versions": profile.versions,
        "lanes": profile.num_workers,
        "exit_ms": exit_ms.tolist(),
        "budget_curve": rows_with_costs(rows, exit_ms, "mean_ms"),
    }
