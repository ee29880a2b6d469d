"""Budgets in time: what a run's exits cost in milliseconds here, and the curve over them."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.distributed import is_first_process, wait_for_all
from imta_jax.evaluation import read_budget_curve, rows_with_costs
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.profile import StageProfile
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.files import write_json
from imta_jax.runtime.lock import only_run_in
from imta_jax.training import last_phase, load_classifier

_log = logging.getLogger(__name__)


def time_run(workdir: str | Path, *, profile_dir: str | Path | None = None) -> None:
    """Measures a finished run's stages on this device, and draws budgets in that unit.

    Writes `evaluation/stage_profile.json` and `evaluation/time.json`, which the report shows: per
    exit the milliseconds per image, and for each budget of the geometric sweep thresholds, accuracy
    and time as in `results.json`, chosen as there on validation images.

    Of several processes the first one measures, and the others wait.

    Args:
      workdir: folder of a run that was evaluated.
      profile_dir: where profiles are kept; default ~/.cache/imta_jax/profiles.

    Raises:
      FileNotFoundError: the run was not evaluated.
      BlockingIOError: another run is at work in the folder.
    """
    workdir = Path(workdir)
    folder = workdir / "evaluation"
    rows = read_budget_curve(workdir)
    config = json.loads((workdir / "config.json").read_text())
    which = config["evaluation"]["checkpoint"]
    classifier, meta = load_classifier(workdir / last_phase(config), which)
    if is_first_process():
        with only_run_in(workdir):
            profile = _measured(classifier, meta, profile_dir)
            profile.save(folder / "stage_profile.json")
            write_json(folder / "time.json", _in_time(profile, rows))
    wait_for_all("a run's stages are measured")


def _measured(
    classifier: MultiExitClassifier, meta: Mapping[str, Any], profile_dir: str | Path | None
) -> StageProfile:
    """Of the network as it is run by default."""
    _log.info("time: measuring %d stages on this device", classifier.num_exits)
    anywhere = np.zeros(classifier.num_exits)  # thresholds play no part in what stages cost
    adaptive = AdaptiveClassifier(
        classifier, anywhere, mean=meta["mean"], std=meta["std"], profile_dir=profile_dir
    )
    return adaptive.measure()


def _in_time(profile: StageProfile, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The budget curve against milliseconds per image at the fastest batch size."""
    exit_ms = profile.exit_ms()
    return {
        "device": profile.device,
        "versions": profile.versions,
        "lanes": profile.lanes,
        "exit_ms": exit_ms.tolist(),
        "budget_curve": rows_with_costs(rows, exit_ms, "mean_ms"),
    }
