"""Checkpoints of another network or format version."""

import json
import re
import shutil

import pytest
import tiny_run
from resumed_runs import assert_same_phase

from imta_jax.cli.run import run
from imta_jax.training import (
    AnotherNetworkError,
    load_classifier,
    read_meta,
    train_phase_one,
)


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
    with pytest.raises(AnotherNetworkError, match=r"backbone\.exits\.2"):
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


def test_a_folder_of_a_run_is_rejected_with_the_folders_of_its_phases(tmp_path):
    (tmp_path / "phase_one").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*{tmp_path}/phase_one"):
        load_classifier(tmp_path)


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
