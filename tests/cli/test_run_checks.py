"""Checks before a run writes anything: values, recorded config and data."""

import json
import shutil

import numpy as np
import pytest
import tiny_run
from run_folders import files

from imta_jax.cli.run import MODES, run
from imta_jax.cli.run_records import check_same_config


def test_another_config_raises_with_fields_and_both_values(source, config, finished):
    before = (finished / "config.json").read_bytes()
    other = tiny_run.tiny_config(source, phase_one__learning_rate=0.5, seed=7)
    with pytest.raises(ValueError) as error:
        run(other, finished)
    message = str(error.value)
    assert "another --workdir" in message
    assert "config.phase_one.learning_rate: the folder's 0.05, now 0.5" in message
    assert "config.seed: the folder's 0, now 7" in message
    assert "batch_size" not in message
    assert (finished / "config.json").read_bytes() == before


def test_the_same_data_may_have_another_path(source, finished, tmp_path, monkeypatch):
    (tmp_path / "link.npz").symlink_to(source)
    shutil.copy(source, tmp_path / "copy.npz")
    monkeypatch.chdir(tmp_path)
    before = files(finished)
    for path in ("link.npz", tmp_path / "copy.npz"):
        run(tiny_run.tiny_config(path, data__memory_limit_gb=1.0), finished)
    run(tiny_run.tiny_config(source, data__data_dir="moved"), finished)
    assert files(finished) == before


def test_the_path_of_initial_parameters_may_be_written_in_another_way(tmp_path, monkeypatch):
    def config_of(path):
        return tiny_run.run_config("a.npz", phase_one__init_from=str(path))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.npz").touch()
    (tmp_path / "link.npz").symlink_to("weights.npz")
    recorded = config_of(tmp_path / "weights.npz")
    for path in ("weights.npz", "link.npz"):
        check_same_config(config_of(path), recorded, tmp_path, "all")
    with pytest.raises(ValueError, match=r"init_from: .*weights.npz', now 'other.npz'"):
        check_same_config(config_of("other.npz"), recorded, tmp_path, "all")


def test_other_data_with_another_path_is_refused_by_its_content(source, finished, tmp_path):
    with np.load(source) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "other.npz", **arrays | {"train_images": arrays["train_images"][:, ::-1]})
    with pytest.raises(ValueError, match=r"another --workdir:\n  train: .*images or labels differ"):
        run(tiny_run.tiny_config(tmp_path / "other.npz"), finished)


def test_an_invalid_value_is_named_before_the_config_is_compared(source, finished):
    with pytest.raises(ValueError, match=r"valid, the closest first: cifar_4_exits, "):
        run(tiny_run.tiny_config(source, model__preset="cifar_9_exits", seed=7), finished)


def test_other_data_under_the_same_name_raises(trained, tmp_path):
    images, labels = tiny_run.draw_images(tiny_run.TRAIN_IMAGES, 0)
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    run(tiny_run.tiny_config(source), trained, "evaluate")
    (trained / "results.json").unlink()
    with np.load(source) as archive:
        arrays = dict(archive)
    np.savez(source, **arrays | {"train_images": images[1:], "train_labels": labels[1:]})
    before = files(trained)
    with pytest.raises(ValueError, match=r"another --workdir:\n  train: \d+ images before"):
        run(tiny_run.tiny_config(source), trained, "evaluate")
    assert files(trained) == before


def test_an_unknown_mode_raises_with_the_valid_ones(config, tmp_path):
    with pytest.raises(
        ValueError, match="'evalute'; valid, the closest first: evaluate, "
    ) as error:
        run(config, tmp_path, "evalute")
    assert all(mode in str(error.value) for mode in MODES)
    assert not files(tmp_path)


@pytest.mark.parametrize("config", [None, "configs/quickstart.py"])
def test_a_config_that_is_no_mapping_raises_with_its_value(config, tmp_path):
    with pytest.raises(ValueError, match=f"config must be a mapping.*{config}"):
        run(config, tmp_path)


BAD_VALUES = {
    "data__source": ("nowhere.npz", r"config.data.source .*nowhere.npz"),
    "data__pipeline": ("tfdata", "valid, the closest first: tf_data, "),
    "data__validation_examples": (72, "validation_examples is 72"),
    "data__crop_padding": (-1, "data.crop_padding .* found -1"),
    "model__preset": ("cifar_9_exits", "valid, the closest first: cifar_4_exits, "),
    "model__num_exits": (0, "model.num_exits .* found 0"),
    "phase_one__total_epochs": (-1, "phase_one.total_epochs .* found -1"),
    "phase_one__batch_size": (12, "config.phase_one.batch_size=12 .* 8 devices.* 8 or 16"),
    "phase_one__equilibrium": ("al", "valid, the closest first: all, "),
    "phase_one__learning_rate": (0.0, "phase_one.learning_rate .* found 0.0"),
    "phase_two__total_epochs": (-2, "phase_two.total_epochs .* found -2"),
    "phase_two__batch_size": (64, "batch_size.*48.*found 64"),
    "phase_two__transfer": ("identty", "valid, the closest first: identity, "),
    "phase_two__start": ("phase_on", "valid, the closest first: phase_one, "),
    "phase_two__alpha": (2.0, "phase_two.alpha .* found 2.0"),
    "phase_two__temperature": (0.0, "phase_two.temperature .* found 0.0"),
    "phase_two__reduction": ("mean", "valid, the closest first: "),
    "phase_two__last_exit": ("plain", "valid, the closest first: "),
    "phase_two__from_checkpoint": ("bst", "valid, the closest first: best, last"),
    "phase_two__learning_rate_drops": (
        (90, 135),
        r"phase_two.learning_rate_drops .* found \(90.0, 135.0\)",
    ),
    "evaluation__batch_size": (20, "config.evaluation.batch_size=20 .* 16 or 24"),
    "evaluation__checkpoint": ("latest", "valid, the closest first: last, best"),
    "evaluation__quotas": ((0.5, -1.0), r"evaluation.quotas .* found \(0.5, -1.0\)"),
    "evaluation__reported_budgets": ((30.0,), r"evaluation.reported_budgets .* found \(30.0,\)"),
    "evaluation__calibration_bins": (0, "evaluation.calibration_bins .* found 0"),
}


@pytest.mark.parametrize("field", BAD_VALUES)
def test_an_invalid_value_raises_before_anything_is_written(field, source, tmp_path):
    value, message = BAD_VALUES[field]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tiny_run.tiny_config(source, **{field: value}), tmp_path)
    # A config.json would conflict with the corrected config.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["phase_one", "phase_two", "evaluate"])
def test_every_mode_checks_the_values_of_all_steps(mode, source, tmp_path):
    with pytest.raises(ValueError, match=r"phase_one\.total_epochs .* -1"):
        run(tiny_run.tiny_config(source, phase_one__total_epochs=-1), tmp_path, mode)
    assert not list(tmp_path.iterdir())


def test_a_field_that_an_older_run_did_not_record_has_its_default(config, finished, tmp_path):
    older = shutil.copytree(finished, tmp_path / "older")
    recorded = json.loads((older / "config.json").read_text())
    del recorded["phase_two"]["last_exit"], recorded["checkpoint"]
    (older / "config.json").write_text(json.dumps(recorded))
    run(config, older)
    recorded["phase_two"]["last_exit"] = "cross_entropy"
    (older / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"phase_two\.last_exit: .*cross_entropy.*, now .*mixed"):
        run(config, older)
