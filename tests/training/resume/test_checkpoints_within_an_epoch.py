"""Resuming within an epoch, after SIGTERM or from periodic checkpoints."""

import dataclasses
import logging
import os
import shutil
import signal

import pytest
from resumed_runs import TRAIN, assert_same_phase, killed_at, truncate

from imta_jax.cli.run import run
from imta_jax.config import CheckpointConfig
from imta_jax.training import (
    Interrupted,
    feed,
    train_phase_one,
)


@pytest.mark.parametrize(
    ("phase", "at"), [("phase_one", 1), ("phase_one", 2), ("phase_one", 3), ("phase_two", 2)]
)
def test_sigterm_saves_within_the_epoch_and_the_next_call_resumes_there(
    phase, at, config, dataset, finished, tmp_path, monkeypatch
):
    if phase == "phase_two":
        shutil.copytree(finished / "phase_one", tmp_path / "phase_one")
    batches, made = feed.train_batches, []

    def terminated(split, preprocessing, *, epoch, **settings):
        for i, batch in enumerate(batches(split, preprocessing, epoch=epoch, **settings)):
            if epoch == 1 and i == at - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(feed, "train_batches", terminated)
        with pytest.raises(Interrupted, match=rf"{phase} .*step {at} of epoch 2"):
            TRAIN[phase](config, dataset, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def counted(split, preprocessing, **settings):
        made.append((settings["epoch"], settings["start_step"]))
        return batches(split, preprocessing, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(feed, "train_batches", counted)
        TRAIN[phase](config, dataset, tmp_path)
    assert made[0] == (1, at)
    assert_same_phase(tmp_path / phase, finished / phase, getattr(config, phase).total_epochs)


def test_a_killed_run_resumes_from_a_checkpoint_within_the_epoch(
    config, dataset, finished, tmp_path, caplog
):
    often = dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=1))
    with killed_at(2, 2):
        train_phase_one(often, dataset, tmp_path)
    truncate_all(tmp_path / "phase_one" / "partial" / "8")  # The one before is used.
    with caplog.at_level(logging.INFO, "imta_jax"):
        train_phase_one(often, dataset, tmp_path)
    assert "resuming at step 1 of epoch 3" in caplog.text
    assert_same_phase(tmp_path / "phase_one", finished / "phase_one", 3)


def truncate_all(checkpoint):
    assert checkpoint.is_dir()
    truncate(checkpoint)


@pytest.mark.usefixtures("no_report")
def test_a_run_stopped_after_the_last_step_of_an_epoch_resumes(
    config, finished, tmp_path, monkeypatch
):
    batches = feed.train_batches

    def terminated(split, preprocessing, *, epoch, **settings):
        for i, batch in enumerate(batches(split, preprocessing, epoch=epoch, **settings)):
            if epoch == 0 and i == 2:  # The last of three.
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(feed, "train_batches", terminated)
        with pytest.raises(Interrupted, match=r"phase_one .*step 3 of epoch 1"):
            run(config, tmp_path)
    left = tmp_path / "evaluation" / ".logits_test.npz.1.partial"
    left.parent.mkdir()
    left.write_bytes(b"left by a killed run")
    (tmp_path / ".exported.1.partial").mkdir()  # left by a killed export
    run(config, tmp_path)
    assert_same_phase(tmp_path / "phase_one", finished / "phase_one", 3)
    assert (tmp_path / "results.json").exists() and not left.exists()
