"""Resuming: a run that was killed at any time ends with bit-identical parameters."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess

import chex
import jax
import orbax.checkpoint as ocp
import pytest
import tiny_run

from imta_jax.cli.run import run
from imta_jax.config import CheckpointConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.runtime.lock import only_run_in
from imta_jax.training import (
    AnotherNetworkError,
    Interrupted,
    checkpoint_reading,
    feed,
    load_classifier,
    phases,
    read_meta,
    train_phase_one,
    train_phase_two,
)
from imta_jax.training.checkpoint_reading import has_readable_epoch

# After a failed read of a checkpoint, TensorStore's other reads fail in its event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TRAIN = {"phase_one": train_phase_one, "phase_two": train_phase_two}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    with tiny_run.compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "thirds.npz")


@pytest.fixture(scope="module")
def config(source):
    # Learned transfer and moving statistics have more state to restore.
    return tiny_run.run_config(source, "published")


@pytest.fixture(scope="module")
def dataset(config):
    return load_dataset(config.data)


@pytest.fixture(scope="module")
def finished(config, dataset, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    for train in TRAIN.values():
        train(config, dataset, folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


def saved(folder, epoch):
    """All arrays of a checkpoint by name: parameters, statistics, optimizer and step."""
    arrays = {}
    for item in ("model", "progress"):
        with ocp.StandardCheckpointer() as checkpointer:
            arrays[item] = tiny_run.to_host(checkpointer.restore(folder / str(epoch) / item))
    return arrays


def rows(folder):
    """The rows of metrics.jsonl without timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("images_per_second", "input_wait_share")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def assert_same_phase(found, expected, epochs):
    """Compares the final arrays and rows of two phase folders; each epoch has one row per split."""
    chex.assert_trees_all_equal(saved(found, epochs), saved(expected, epochs))
    assert rows(found) == rows(expected)
    assert [(row["epoch"], row["split"]) for row in rows(found)] == [
        (epoch, split) for epoch in range(1, epochs + 1) for split in ("train", "validation")
    ]


class Killed(Exception):
    """Simulates the death of the process."""


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_a_killed_phase_ends_like_an_uninterrupted_one(
    phase, config, dataset, finished, tmp_path, monkeypatch
):
    if phase == "phase_two":
        shutil.copytree(finished / "phase_one", tmp_path / "phase_one")
    batches = feed.train_batches

    def until_killed(split, preprocessing, *, epoch, **settings):
        for i, batch in enumerate(batches(split, preprocessing, epoch=epoch, **settings)):
            if epoch == 1 and i == 2:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(feed, "train_batches", until_killed)
        TRAIN[phase](config, dataset, tmp_path)
    TRAIN[phase](config, dataset, tmp_path)
    assert_same_phase(tmp_path / phase, finished / phase, getattr(config, phase).total_epochs)


def test_a_finished_phase_does_not_train_again(config, dataset, copied, finished):
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def truncate(checkpoint):
    for path in (checkpoint / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_the_optimizer(checkpoint):
    shutil.rmtree(checkpoint / "progress")


def lose_the_data(checkpoint):
    for path in sorted((checkpoint / "model").rglob("d/*")):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("damage", [truncate, lose_the_optimizer, lose_the_data])
def test_a_damaged_checkpoint_is_replaced_by_the_older_one(
    damage, config, dataset, copied, finished, caplog
):
    damage(copied / "phase_one" / "3")
    assert not phases.phase_is_finished(config, copied, "phase_one")
    with caplog.at_level(logging.WARNING, "imta_jax"):
        train_phase_one(config, dataset, copied)
    assert "checkpoint 3 in" in caplog.text
    assert "checkpoint 2 in" not in caplog.text
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)
    assert phases.phase_is_finished(config, copied, "phase_one")
    # Renamed, not deleted: the disk may be at fault.
    assert (copied / "phase_one" / "unreadable_3_1").is_dir()


def test_a_classifier_is_not_loaded_from_a_damaged_checkpoint(copied, caplog):
    truncate(copied / "phase_one" / "3")
    with caplog.at_level(logging.WARNING, "imta_jax"):
        _, meta = load_classifier(copied / "phase_one")
    assert meta["epoch"] == 2 and "checkpoint 3 in" in caplog.text
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        truncate(checkpoint)
    with pytest.raises(FileNotFoundError, match="no readable checkpoint in"):
        load_classifier(copied / "phase_one")


def test_reading_a_missing_folder_creates_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nowhere"):
        load_classifier(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_without_a_readable_checkpoint_training_starts_again(config, dataset, copied, finished):
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        truncate(checkpoint)
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def test_evaluation_verifies_each_checkpoint_once_and_not_on_a_device(config, copied, monkeypatch):
    reads, restore = [], ocp.CheckpointManager.restore

    def recorded(self, step, *arguments, **more):
        found = restore(self, step, *arguments, **more)
        items = {item: found[item] for item in ("model", "progress") if item in found}
        if items:
            on_devices = any(isinstance(x, jax.Array) for x in jax.tree.leaves(items))
            place = "devices" if on_devices else "host"
            reads.append((self.directory.name, place, *items))
        return found

    checkpoint_reading._verified.clear()
    monkeypatch.setattr(ocp.CheckpointManager, "restore", recorded)
    run(config, copied, "evaluate")
    assert sorted(reads) == [
        ("phase_one", "host", "model", "progress"),
        ("phase_two", "devices", "model"),
        ("phase_two", "host", "model", "progress"),
    ]


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


def test_another_network_is_rejected_with_the_differing_names(source, dataset, copied):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    wider = tiny_run.run_config(source, "published", model__channels=6)
    with pytest.raises(AnotherNetworkError) as error:
        train_phase_one(wider, dataset, copied)
    assert isinstance(error.value, ValueError)
    message = str(error.value)
    assert "epoch 3" in message and "--workdir" in message
    assert re.search(r"backbone\.\S+: this network \(6,\), the checkpoint \(4,\)", message), message
    assert {path: path.stat().st_mtime_ns for path in before} == before
    deeper = tiny_run.run_config(source, "published", model__num_exits=3)
    with pytest.raises(AnotherNetworkError, match=r"not in the checkpoint: backbone\.exits\.2"):
        train_phase_one(deeper, dataset, copied)


def change_meta(folder, change):
    for path in folder.glob("[0-9]*/meta/metadata"):
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))


def test_a_checkpoint_without_a_format_version_is_of_the_first(config, dataset, copied, finished):
    change_meta(copied / "phase_one", lambda meta: meta.pop("format_version"))
    assert read_meta(copied / "phase_one")["format_version"] == 1
    shutil.rmtree(copied / "phase_one" / "3")
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def test_a_checkpoint_of_a_newer_format_is_rejected_and_kept(config, dataset, copied):
    change_meta(copied / "phase_one", lambda meta: meta.update(format_version=2))
    for read in (
        lambda: train_phase_one(config, dataset, copied),
        lambda: load_classifier(copied / "phase_one"),
        lambda: run(config, copied),
    ):
        with pytest.raises(ValueError, match=r"checkpoint 3 in .* format_version 2.* 1"):
            read()
    assert (copied / "phase_one" / "3").is_dir()


def command(source, workdir, cache):
    """The launch command of the tiny run with 5 epochs in phase I."""
    more = ("--config.data.pipeline=numpy", "--config.phase_one.total_epochs=5")
    return tiny_run.launch_command(source, workdir, cache, *more)


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
    finished = command(source, tmp_path / "finished", tmp_path / "cache")
    for again in (killed, finished):
        subprocess.run(**again, check=True, capture_output=True)
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


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
@pytest.mark.parametrize("at", [1, 2, 3])
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
        with pytest.raises(Interrupted, match=rf"{phase} stopped at step {at} of epoch 2, saved"):
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
    config, dataset, finished, tmp_path, monkeypatch, caplog
):
    often = dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=1))
    batches = feed.train_batches

    def until_killed(split, preprocessing, *, epoch, **settings):
        for i, batch in enumerate(batches(split, preprocessing, epoch=epoch, **settings)):
            if epoch == 2 and i == 2:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(feed, "train_batches", until_killed)
        train_phase_one(often, dataset, tmp_path)
    truncate_all(tmp_path / "phase_one" / "partial" / "8")  # The one before is used.
    with caplog.at_level(logging.INFO, "imta_jax"):
        train_phase_one(often, dataset, tmp_path)
    assert "resuming at step 1 of epoch 3" in caplog.text
    assert_same_phase(tmp_path / "phase_one", finished / "phase_one", 3)


def truncate_all(checkpoint):
    assert checkpoint.is_dir()
    truncate(checkpoint)


def test_a_second_run_in_the_folder_is_rejected(config, tmp_path):
    with only_run_in(tmp_path), pytest.raises(BlockingIOError, match="process"):
        run(config, tmp_path)
    with only_run_in(tmp_path):
        pass


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
        with pytest.raises(Interrupted, match="phase_one stopped at step 3 of epoch 1, saved"):
            run(config, tmp_path)
    left = tmp_path / "evaluation" / ".logits_test.npz.1.partial"
    left.parent.mkdir()
    left.write_bytes(b"left by a killed run")
    run(config, tmp_path)
    assert_same_phase(tmp_path / "phase_one", finished / "phase_one", 3)
    assert (tmp_path / "results.json").exists() and not left.exists()
