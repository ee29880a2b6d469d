"""Damaged checkpoints, and how checkpoints are verified."""

import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import orbax.checkpoint as ocp
import pytest
import tiny_run
from resumed_runs import (
    assert_same_phase,
    change_a_weight,
    lose_the_data,
    lose_the_optimizer,
    truncate,
)

from imta_jax.cli.run import run
from imta_jax.training import (
    checkpoint_reading,
    load_classifier,
    phases,
    train_phase_one,
)

# After a failed read of a checkpoint, TensorStore's other reads fail in its event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("damage", [truncate, lose_the_optimizer, lose_the_data, change_a_weight])
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
    with pytest.raises(FileNotFoundError, match=rf"{copied}/phase_one \(checkpoint 3: .*; checkp"):
        load_classifier(copied / "phase_one")


def test_an_evaluation_without_a_readable_checkpoint_names_each_damage(config, copied, caplog):
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        (checkpoint / "model" / "_METADATA").write_text("")
    message = rf"{copied}/phase_one \(checkpoint 3: .*; checkpoint 2: .*restore the folder"
    with pytest.raises(FileNotFoundError, match=message):
        phases.check_trained(config, copied, "phase_one")
    shutil.rmtree(copied / "phase_one")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*--mode=phase_one"):
        phases.check_trained(config, copied, "phase_one")


def test_checkpoints_are_read_without_checksums(copied):
    checkpoint = copied / "phase_one" / "3"
    (checkpoint / "checksums.json").unlink()
    assert load_classifier(copied / "phase_one")[1]["epoch"] == 3
    (checkpoint / "checksums.json").write_text("[1]")
    assert load_classifier(copied / "phase_one")[1]["epoch"] == 2


def test_metadata_that_are_no_object_are_named(copied, caplog):
    (copied / "phase_one" / "3" / "meta" / "metadata").write_text("[]")
    (copied / "phase_one" / "3" / "checksums.json").unlink()
    assert load_classifier(copied / "phase_one")[1]["epoch"] == 2
    assert "must hold a JSON object; found []" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", None), ("heads", "x"), ("image_shape", [8, None, 1]), ("class_names", 3)],
)
def test_metadata_of_another_type_are_named(copied, name, value):
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        path = checkpoint / "meta" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        (checkpoint / "checksums.json").unlink()
    with pytest.raises(ValueError, match=rf"{copied}/phase_one has no valid {name}"):
        load_classifier(copied / "phase_one")


@pytest.mark.parametrize("name", ["meta/metadata", "metrics/metrics", "model/_METADATA", "a"])
def test_a_pipe_in_a_checkpoint_is_named_and_not_opened(config, dataset, copied, name):
    pipe = copied / "phase_one" / "2" / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match=f"{pipe} is a pipe"):
        load_classifier(copied / "phase_one")
    with pytest.raises(FileExistsError, match=f"{pipe} is a pipe"):
        train_phase_one(config, dataset, copied)


def test_metadata_of_arrays_are_verified_although_only_devices_need_them(copied, caplog):
    for path in (copied / "phase_one" / "3" / "model" / "array_metadatas").iterdir():
        path.write_bytes(b"\xdd")
    with caplog.at_level(logging.WARNING, "imta_jax"):
        _, meta = load_classifier(copied / "phase_one")
    assert meta["epoch"] == 2 and "array_metadatas" in caplog.text


def test_a_damaged_checkpoint_prints_nothing_but_the_error(copied):
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        lose_the_data(checkpoint)
    program = (
        "import sys; from imta_jax.training import load_classifier\n"
        "try: load_classifier(sys.argv[1])\n"
        "except FileNotFoundError as error: print('caught', error)"
    )
    command = [sys.executable, "-c", program, str(copied / "phase_one")]
    done = subprocess.run(command, cwd=tiny_run.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("caught no readable checkpoint")
    lines = [line for line in done.stderr.splitlines() if "trying an older one" not in line]
    assert not lines


def test_a_checkpoint_without_the_fields_of_its_network_is_named(copied):
    for checkpoint in (copied / "phase_one").glob("[0-9]"):
        (checkpoint / "meta" / "metadata").write_text("{}")
    with pytest.raises(ValueError, match=rf"{copied}/phase_one has no valid class_names.*model"):
        load_classifier(copied / "phase_one")


@pytest.mark.parametrize("content", [b"", b'{"top1"', b"\xa0"])
def test_damaged_metrics_are_deleted_without_loss(content, config, dataset, copied, finished):
    shutil.rmtree(copied / "phase_one" / "3")
    metrics = copied / "phase_one" / "2" / "metrics"
    (metrics / "metrics").write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics.*delete them.*: {metrics}$"):
        train_phase_one(config, dataset, copied)
    if content:
        return
    shutil.rmtree(metrics)
    train_phase_one(config, dataset, copied)
    assert_same_phase(copied / "phase_one", finished / "phase_one", 3)


def test_reading_a_missing_folder_creates_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
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
        actual = restore(self, step, *arguments, **more)
        items = {item: actual[item] for item in ("model", "progress") if item in actual}
        if items:
            on_devices = any(isinstance(x, jax.Array) for x in jax.tree.leaves(items))
            place = "devices" if on_devices else "host"
            reads.append((self.directory.name, place, *items))
        return actual

    checkpoint_reading._verified.clear()
    monkeypatch.setattr(ocp.CheckpointManager, "restore", recorded)
    run(config, copied, "evaluate")
    assert sorted(reads) == [
        ("phase_one", "host", "model", "progress"),
        ("phase_two", "devices", "model"),
        ("phase_two", "host", "model", "progress"),
    ]
