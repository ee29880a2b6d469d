"""A run and its folder: written files, skipped steps, and checks before anything is written."""

import json
import logging
import shutil

import chex
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.cli.run import MODES, run
from imta_jax.config import RunConfig
from imta_jax.data import preview
from imta_jax.evaluation import exit_of, load_predictions, read_samples
from imta_jax.evaluation.predictions import confidence
from imta_jax.inference import timing
from imta_jax.runtime.lock import only_run_in
from imta_jax.training import load_classifier
from imta_jax.training.state import named_arrays


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    with tiny_run.compiled_once(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "thirds.npz")


@pytest.fixture(scope="module")
def config(source):
    return tiny_run.tiny_config(source)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of a finished run; read-only."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "finished"
    run(config, folder)
    return folder


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished / "results.json").read_text())


@pytest.fixture
def trained(finished, tmp_path):
    """A folder with only the two trained phases."""
    for phase in ("phase_one", "phase_two"):
        shutil.copytree(finished / phase, tmp_path / "trained" / phase)
    return tmp_path / "trained"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ----- files of a run


def test_a_run_writes_the_documented_files(finished):
    found = files(finished)
    for name in (
        "config.json",
        "dataset.json",
        "phase_one/metrics.jsonl",
        "phase_two/metrics.jsonl",
        "evaluation/logits_validation.npz",
        "evaluation/logits_test.npz",
        "evaluation/samples.parquet",
        "results.json",
        "report/index.html",
    ):
        assert name in found
    for phase, epoch in (("phase_one", 3), ("phase_two", 2)):
        assert (finished / phase / str(epoch) / "model").is_dir()
        assert any(name.startswith(f"{phase}/tensorboard/events") for name in found)
    for ending in (".png", ".md"):
        assert any(name.startswith("report/") and name.endswith(ending) for name in found)
    assert not [name for name in found if name.endswith(".partial")]


def test_config_json_holds_the_config(config, finished):
    recorded = json.loads((finished / "config.json").read_text())
    assert recorded == json.loads(json.dumps(RunConfig.from_mapping(config).to_dict()))


def test_results_have_the_documented_fields(results):
    assert results.keys() >= {"dataset", "phases", "exits", "budget_curve"}
    exits, curve = results["exits"], results["budget_curve"]
    assert [row["exit"] for row in exits] == [1, 2]
    for row in exits:
        assert row.keys() >= {"macs", "published_ops", "params", "top1", "top5", "ece", "auroc"}
        assert 0 <= row["top1"] <= row["top5"] <= 100
    assert exits[0]["macs"] < exits[1]["macs"]
    assert len(curve) == 40
    for row in curve:
        assert row.keys() == {
            "quota",
            "thresholds",
            "mean_macs",
            "validation_mean_macs",
            "validation_exit_fractions",
            "validation_top1",
            "top1",
            "exit_fractions",
        }
        assert sum(row["exit_fractions"]) == pytest.approx(1)
        costs = [entry["macs"] for entry in exits]
        assert row["mean_macs"] == pytest.approx(np.dot(row["exit_fractions"], costs))
    assert results["phases"]["phase_one"]["epochs"] == 3
    assert results["phases"]["phase_two"]["epochs"] == 2
    assert results["dataset"]["examples"] == {"train": 48, "validation": 24, "test": 21}


def test_threshold_methods_are_compared_at_the_reported_budgets(finished, results):
    points = results["threshold_methods"]["points"]
    for row in results["reported_budgets"]:
        at_budget = {p["method"]: p for p in points if p.get("budget") == row["budget"]}
        assert at_budget.keys() == {"sweep", "envelope", "temperature", "optimised"}
        assert at_budget["envelope"]["validation_top1"] >= row["validation_top1"]
        assert at_budget["optimised"]["validation_top1"] >= row["validation_top1"]
    assert (finished / "report" / "threshold_methods.png").exists()


def test_mode_time_measures_exits_and_adds_them_to_the_report(config, finished, results, tmp_path):
    timed = shutil.copytree(finished, tmp_path / "timed")
    run(config, timed, mode="time")
    found = json.loads((timed / "evaluation" / "time.json").read_text())
    assert len(found["exit_ms"]) == 2 and 0 < found["exit_ms"][0] < found["exit_ms"][1]
    for row, of_macs in zip(found["budget_curve"], results["budget_curve"], strict=True):
        # The sweep's thresholds do not depend on costs, so images take the same exits.
        assert row["thresholds"] == of_macs["thresholds"] and row["top1"] == of_macs["top1"]
        assert row["mean_ms"] == pytest.approx(np.dot(row["exit_fractions"], found["exit_ms"]))
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
    with only_run_in(timed), pytest.raises(BlockingIOError, match="another run is at work"):
        run(config, timed, mode="time")
    with monkeypatch.context() as patch:
        patch.setattr(timing, "is_first_process", lambda: False)
        timing.time_run(timed)
    assert not (timed / "evaluation" / "time.json").exists()


def test_metrics_have_one_row_per_epoch_and_split(finished):
    for phase, epochs in (("phase_one", 3), ("phase_two", 2)):
        rows = metrics(finished / phase)
        seen = [(row["epoch"], row["step"], row["split"]) for row in rows]
        assert seen == [
            (e, 3 * e, split) for e in range(1, epochs + 1) for split in ("train", "validation")
        ]
        assert all(row["loss"] == pytest.approx(sum(row["loss_per_exit"])) for row in rows)


def test_samples_have_one_row_per_test_image_with_the_cost_of_its_exit(finished, results):
    table = read_samples(finished / "evaluation" / "samples.parquet")
    assert table["index"].tolist() == list(range(tiny_run.TEST_IMAGES))
    assert table["label"].tolist() == [i % 3 for i in range(tiny_run.TEST_IMAGES)]
    costs = np.asarray([row["macs"] for row in results["exits"]])
    logits = load_predictions(finished / "evaluation" / "logits_test.npz").logits
    reported = results["reported_budgets"]
    assert [row["budget"] for row in reported] == [0.7, 0.9]
    for row in reported:
        prefix = f"budget_{100 * row['budget']:g}"
        exits = table[f"{prefix}_exit"].to_numpy()
        np.testing.assert_array_equal(table[f"{prefix}_macs"], costs[exits])
        np.testing.assert_array_equal(exits, exit_of(confidence(logits), row["thresholds"]))
        right = table[f"{prefix}_prediction"] == table["label"]
        assert row["top1"] == pytest.approx(100 * right.mean())
        assert row["mean_macs"] == pytest.approx(table[f"{prefix}_macs"].mean())


def test_thresholds_do_not_depend_on_test_labels(config, source, trained, results, tmp_path):
    with np.load(source) as archive:
        arrays = dict(archive)
    arrays["test_labels"] = (arrays["test_labels"] + 1) % 3
    np.savez(tmp_path / "thirds.npz", **arrays)
    changed = tiny_run.tiny_config(tmp_path / "thirds.npz")
    run(changed, trained, "evaluate")
    found = json.loads((trained / "results.json").read_text())
    for field in ("budget_curve", "reported_budgets"):
        for row, before in zip(found[field], results[field], strict=True):
            assert row["thresholds"] == before["thresholds"]
            assert row["validation_top1"] == before["validation_top1"]
    assert found["exits"][1]["top1"] != results["exits"][1]["top1"]


# ----- steps and modes


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
    found = json.loads((tmp_path / "results.json").read_text())
    for field in ("exits", "budget_curve", "reported_budgets"):
        assert found[field] == results[field]


def test_mode_report_writes_the_report_again(config, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "report" / "index.html").unlink()
    run(config, copy, "report")
    assert (copy / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("phase_two", r"no checkpoint in .*phase_one; train it first: python launch\.py"),
        ("evaluate", r"no checkpoint in .*phase_two; train it first: python launch\.py"),
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
    found = json.loads((trained / "results.json").read_text())
    assert found["environment"]["evaluated_phase"] == "phase_one"
    assert found["phases"]["phase_two"] is None
    assert not (trained / "phase_two").exists()
    last = metrics(trained / "phase_one")[-1]
    for row, measured in zip(found["exits"], last["top1_per_exit"], strict=True):
        assert row["validation_top1"] == pytest.approx(measured, abs=1e-4)
    assert (trained / "report" / "index.html").exists()


def test_a_run_may_resume_with_another_mesh(source, finished, trained, results):
    shutil.copy(finished / "config.json", trained)
    run(tiny_run.tiny_config(source, mesh__parameter_shards=4), trained, "evaluate")
    assert (trained / "config.json").read_bytes() == (finished / "config.json").read_bytes()
    found = json.loads((trained / "results.json").read_text())
    assert [e["top1"] for e in found["exits"]] == [e["top1"] for e in results["exits"]]


# ----- invalid input


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
    "phase_two__batch_size": (64, "batch_size is 64.*48"),
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
    del recorded["phase_two"]["temperature_squared"], recorded["checkpoint"]
    (older / "config.json").write_text(json.dumps(recorded))
    run(config, older)
    recorded["phase_two"]["temperature_squared"] = False
    (older / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"phase_two\.temperature_squared: .*False, now True"):
        run(config, older)


def test_damaged_json_files_are_named_and_written_again(config, finished, tmp_path, caplog):
    copy = shutil.copytree(finished, tmp_path / "copy")
    written = ("config.json", "dataset.json", "results.json")
    for name in written:
        (copy / name).write_bytes((copy / name).read_bytes()[:-20])
    (copy / "phase_two" / "metrics.jsonl").write_bytes(b"\0" * 50)
    (copy / "evaluation" / "time.json").write_text("")
    with caplog.at_level(logging.WARNING, "imta_jax"):
        run(config, copy)
        run(config, copy, "report")
    for name in (*written, "phase_two/metrics.jsonl", "evaluation/time.json"):
        assert str(copy / name) in caplog.text
    for name in ("config.json", "dataset.json"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
    found, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (copy, finished)
    )
    assert found["exits"] == expected["exits"]
    assert found["phases"]["phase_one"] == expected["phases"]["phase_one"]
    assert found["phases"]["phase_two"]["epochs"] == 2
    assert found["phases"]["phase_two"]["seconds"] is None


def test_damaged_results_are_named_by_what_reads_them(config, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "results.json").write_text("")
    for read in (lambda: run(config, copy, "report"), lambda: run(config, copy, "time")):
        with pytest.raises(ValueError, match=r"results\.json is empty .*--mode=evaluate"):
            read()


def test_after_the_evaluation_no_phase_is_needed(config, finished, tmp_path, caplog):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for phase in ("phase_one", "phase_two"):
        shutil.rmtree(copy / phase)
    before = files(copy)
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, copy)
    assert files(copy) == before and not (copy / "phase_one").exists()
    assert "phase_one: not in" in caplog.text and "phase_two: not in" in caplog.text


def test_after_phase_two_began_phase_one_is_not_needed(config, results, trained, caplog):
    expected = named_arrays(nnx.state(load_classifier(trained / "phase_two")[0]))
    shutil.rmtree(trained / "phase_one")
    shutil.rmtree(trained / "phase_two" / "2")
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, trained)
    assert "phase_two: the newest checkpoint in" in caplog.text
    assert not (trained / "phase_one").exists()
    found = named_arrays(nnx.state(load_classifier(trained / "phase_two")[0]))
    chex.assert_trees_all_equal(found, expected)
    found = json.loads((trained / "results.json").read_text())
    assert found["exits"] == results["exits"]
    assert found["phases"]["phase_one"]["checkpoint_epoch"] is None


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
