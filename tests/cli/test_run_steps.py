"""The steps of a run: modes, finished steps, and the input of each step."""

import json
import logging
import shutil

import chex
import pytest
import tiny_run
from flax import nnx
from run_folders import files, metrics

from imta_jax.cli.run import run
from imta_jax.data import preview
from imta_jax.training import load_classifier
from imta_jax.training.state import named_arrays


def test_a_finished_run_is_not_changed_by_a_second_start(config, finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    for step in ("phase_one", "phase_two", "evaluate"):
        assert f"{step}: already done in {finished}" in caplog.text
    assert "report: " in caplog.text


def test_a_finished_run_loads_no_data(config, finished, monkeypatch):
    monkeypatch.setattr("imta_jax.cli.run.load_dataset", lambda data: pytest.fail("loaded"))
    run(config, finished)


def test_each_mode_does_one_step(config, finished, results, tmp_path):
    run(config, tmp_path, "phase_one")
    assert (tmp_path / "phase_one" / "3").is_dir()
    assert not (tmp_path / "phase_two").exists()
    run(config, tmp_path, "phase_two")
    assert (tmp_path / "phase_two" / "2").is_dir()
    assert not (tmp_path / "results.json").exists()
    run(config, tmp_path, "evaluate")
    assert not (tmp_path / "report").exists()
    run(config, tmp_path, "report")
    assert {name for name in files(tmp_path) if "phase_" not in name} == {
        name for name in files(finished) if "phase_" not in name
    }
    actual = json.loads((tmp_path / "results.json").read_text())
    for field in ("exits", "budget_curve", "reported_budgets"):
        assert actual[field] == results[field]


def test_a_finished_run_is_evaluated_again_with_other_settings(source, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    margin = {"evaluation__exit_rule": "margin"}
    with pytest.raises(ValueError, match=r"--mode=evaluate:\n  config\.evaluation\.exit_rule"):
        run(tiny_run.tiny_config(source, **margin), copy)
    with pytest.raises(ValueError, match=r"config\.seed: the folder's 0, now 7"):
        run(tiny_run.tiny_config(source, **margin, seed=7), copy, "evaluate")
    run(tiny_run.tiny_config(source, **margin), copy, "evaluate")
    actual, before = (
        json.loads((folder / "results.json").read_text()) for folder in (copy, finished)
    )
    assert actual["exit_rule"]["name"] == "margin" and "exit_rule" not in before
    assert actual["exits"] == before["exits"]
    config = json.loads((copy / "config.json").read_text())
    assert config["evaluation"].pop("exit_rule") == "margin"
    original = json.loads((finished / "config.json").read_text())
    assert original["evaluation"].pop("exit_rule") == "confidence"
    assert config == original


def test_mode_report_writes_the_report_again(config, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "report" / "index.html").unlink()
    run(config, copy, "report")
    assert (copy / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("phase_two", r"phase_one;.*python launch\.py"),
        ("evaluate", r"phase_two;.*python launch\.py"),
        ("report", r"results\.json"),
    ],
)
def test_a_step_without_its_input_names_the_command_that_makes_it(mode, message, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=message):
        run(config, tmp_path, mode)


@pytest.mark.parametrize("mode", ["phase_two", "evaluate"])
def test_a_rejected_mode_leaves_no_folder(mode, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"without --mode, or with --mode=phase_one"):
        run(config, tmp_path / "new", mode)
    assert not (tmp_path / "new").exists()


def test_without_phase_two_phase_one_is_evaluated(source, trained):
    shutil.rmtree(trained / "phase_two")
    run(tiny_run.tiny_config(source, phase_two__total_epochs=0), trained)
    actual = json.loads((trained / "results.json").read_text())
    assert actual["environment"]["evaluated_phase"] == "phase_one"
    assert actual["phases"]["phase_two"] is None
    assert not (trained / "phase_two").exists()
    last = metrics(trained / "phase_one")[-1]
    for row, measured in zip(actual["exits"], last["top1_per_exit"], strict=True):
        assert row["validation_top1"] == pytest.approx(measured, abs=1e-4)
    assert (trained / "report" / "index.html").exists()


def test_a_run_may_resume_with_another_mesh(source, finished, trained, results):
    shutil.copy(finished / "config.json", trained)
    run(tiny_run.tiny_config(source, mesh__parameter_shards=4), trained, "evaluate")
    assert (trained / "config.json").read_bytes() == (finished / "config.json").read_bytes()
    actual = json.loads((trained / "results.json").read_text())
    assert [e["top1"] for e in actual["exits"]] == [e["top1"] for e in results["exits"]]


def test_after_the_evaluation_no_phase_is_needed(config, finished, tmp_path, caplog):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for phase in ("phase_one", "phase_two"):
        shutil.rmtree(copy / phase)
    before = files(copy)
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, copy)
    assert files(copy) == before and not (copy / "phase_one").exists()
    assert "phase_one: not in" in caplog.text and "phase_two: not in" in caplog.text


@pytest.mark.usefixtures("no_report")
def test_after_phase_two_began_phase_one_is_not_needed(config, results, trained, caplog):
    expected = named_arrays(nnx.state(load_classifier(trained / "phase_two")[0]))
    shutil.rmtree(trained / "phase_one")
    shutil.rmtree(trained / "phase_two" / "2")
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, trained)
    assert "phase_two: the newest checkpoint in" in caplog.text
    assert not (trained / "phase_one").exists()
    actual = named_arrays(nnx.state(load_classifier(trained / "phase_two")[0]))
    chex.assert_trees_all_equal(actual, expected)
    actual = json.loads((trained / "results.json").read_text())
    assert actual["exits"] == results["exits"]
    assert actual["phases"]["phase_one"]["checkpoint_epoch"] is None


def test_a_phase_that_starts_again_says_why(config, trained, monkeypatch, caplog):
    shutil.rmtree(trained / "phase_one")
    shutil.rmtree(trained / "phase_two" / "1")
    (trained / "phase_two" / "2" / "meta" / "metadata").write_text("")
    started = []
    monkeypatch.setattr("imta_jax.cli.run.train_phase_one", lambda *_: started.append(1))
    monkeypatch.setattr("imta_jax.cli.run.train_phase_two", lambda *_: started.append(2))
    with caplog.at_level(logging.INFO, "imta_jax"), pytest.raises(FileNotFoundError):
        run(config, trained)
    assert started == [1, 2]
    assert f"no checkpoint of an epoch in {trained / 'phase_one'}" in caplog.text
    assert f"checkpoint 2 in {trained / 'phase_two'} cannot be read" in caplog.text


def test_mode_data_uses_the_mesh_of_the_config(source, tmp_path, monkeypatch):
    meshes = []
    monkeypatch.setattr(preview, "write_preview", lambda *_, mesh, **__: meshes.append(mesh))
    monkeypatch.setattr("imta_jax.report.write_data_page", lambda folder: folder)
    run(tiny_run.tiny_config(source, mesh__parameter_shards=4), tmp_path, "data")
    assert [dict(mesh.shape) for mesh in meshes] == [{"data": 2, "parameters": 4}]
