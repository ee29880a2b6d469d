"""`--mode=time`: measured time per exit."""

import json
import os
import shutil

import numpy as np
import pytest

from imta_jax.cli.run import run
from imta_jax.inference import timing
from imta_jax.runtime.lock import lock_workdir


def test_mode_time_measures_exits_and_adds_them_to_the_report(config, finished, results, tmp_path):
    timed = shutil.copytree(finished, tmp_path / "timed")
    run(config, timed, mode="time")
    actual = json.loads((timed / "evaluation" / "time.json").read_text())
    assert len(actual["exit_ms"]) == 2 and 0 < actual["exit_ms"][0] < actual["exit_ms"][1]
    for row, of_macs in zip(actual["budget_curve"], results["budget_curve"], strict=True):
        # The sweep's thresholds do not depend on costs, so images take the same exits.
        assert row["thresholds"] == of_macs["thresholds"] and row["top1"] == of_macs["top1"]
        assert row["mean_ms"] == pytest.approx(np.dot(row["exit_fractions"], actual["exit_ms"]))
    profile = json.loads((timed / "evaluation" / "stage_profile.json").read_text())
    assert np.shape(profile["stage_ms"]) == (2, len(profile["sizes"]))
    assert (timed / "report" / "time.png").exists()
    assert "milliseconds per image" in (timed / "report" / "index.html").read_text()


def test_time_needs_an_evaluated_run(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="--mode=evaluate"):
        run(config, tmp_path / "nothing", mode="time")


def test_mode_time_runs_in_the_first_process_and_locks_the_folder(
    config, finished, tmp_path, monkeypatch
):
    timed = shutil.copytree(finished, tmp_path / "timed")
    with lock_workdir(timed), pytest.raises(BlockingIOError, match=str(os.getpid())):
        run(config, timed, mode="time")
    with monkeypatch.context() as patch:
        patch.setattr(timing, "is_first_process", lambda: False)
        timing.time_run(timed)
    assert not (timed / "evaluation" / "time.json").exists()
