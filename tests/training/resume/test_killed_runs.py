"""A run that was killed at any time ends with bit-identical parameters."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import tiny_run
from resumed_runs import TRAIN, Killed, assert_same_phase, killed_at

from imta_jax.cli.run import run
from imta_jax.runtime.lock import lock_workdir
from imta_jax.training import (
    phases,
    train_phase_one,
)
from imta_jax.training.checkpoint_reading import has_readable_epoch


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_a_killed_phase_ends_like_an_uninterrupted_one(phase, config, dataset, finished, tmp_path):
    if phase == "phase_two":
        shutil.copytree(finished / "phase_one", tmp_path / "phase_one")
    with killed_at(1, 2):
        TRAIN[phase](config, dataset, tmp_path)
    TRAIN[phase](config, dataset, tmp_path)
    assert_same_phase(tmp_path / phase, finished / phase, getattr(config, phase).total_epochs)


def test_a_finished_phase_does_not_train_again(config, dataset, copied, finished):
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def test_a_folder_without_the_epoch_is_not_finished(finished, tmp_path):
    assert has_readable_epoch(finished / "phase_one", 3)
    assert not has_readable_epoch(finished / "phase_one", 4)
    assert not has_readable_epoch(tmp_path / "nothing", 1)


def test_an_incomplete_line_of_metrics_is_dropped(config, dataset, copied, finished):
    shutil.rmtree(copied / "phase_one" / "3")
    with (copied / "phase_one" / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "phase_one", "epo')
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def command(source, workdir, cache):
    """The launch command of the tiny run with 5 epochs in phase I."""
    more = ("--config.data.pipeline=numpy", "--config.phase_one.total_epochs=5")
    return tiny_run.launch_command(source, workdir, cache, *more)


def cached_executables(cache):
    """The stored training steps and their modification times."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / "steps").glob("*.step")}


def test_after_sigkill_the_same_command_gives_the_same_results(source, tmp_path):
    killed = command(source, tmp_path / "killed", tmp_path / "cache")
    with subprocess.Popen(**killed, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if "phase_one epoch 2/5" in line:  # Its checkpoint is being written.
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "phase_two").exists()
    assert not (tmp_path / "killed" / "results.json").exists()
    subprocess.run(**killed, check=True, capture_output=True)
    executables = cached_executables(tmp_path / "cache")
    finished = command(source, tmp_path / "finished", tmp_path / "cache")
    subprocess.run(**finished, check=True, capture_output=True)
    assert len(executables) == 2 and cached_executables(tmp_path / "cache") == executables
    results = [
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("killed", "finished")
    ]
    for field in ("exits", "budget_curve", "reported_budgets", "dataset"):
        assert results[0][field] == results[1][field]
    for phase, epochs in (("phase_one", 5), ("phase_two", 1)):
        assert_same_phase(tmp_path / "killed" / phase, tmp_path / "finished" / phase, epochs)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    config, finished, tmp_path, monkeypatch
):
    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(phases.TrainingLoop, "_validate_epoch", killed)
        run(config, tmp_path, "phase_one")
    run(config, tmp_path, "phase_one")
    assert_same_phase(tmp_path / "phase_one", finished / "phase_one", 3)


def test_a_second_run_in_the_folder_is_rejected(config, tmp_path):
    with lock_workdir(tmp_path), pytest.raises(BlockingIOError, match=str(os.getpid())):
        run(config, tmp_path)
    with lock_workdir(tmp_path):
        pass
