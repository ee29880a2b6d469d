"""A run and its folder: what is written, that nothing is done twice, and what is refused early."""

import json
import logging
import shutil
import sys

import numpy as np
import pytest
import tiny_run

from imta_jax.cli.run import MODES, run
from imta_jax.evaluation import exit_of, load_predictions, read_samples
from imta_jax.evaluation.predictions import confidence
from imta_jax.inference import timing
from imta_jax.runtime.lock import only_run_in
from imta_jax.training.progress import MetricsLog


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
def whole(config, tmp_path_factory):
    """The folder of a run from start to end; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "made" / "whole"
    run(config, folder)
    return folder


@pytest.fixture(scope="module")
def results(whole):
    return json.loads((whole / "results.json").read_text())


@pytest.fixture
def trained(whole, tmp_path):
    """A copy of its two phases alone."""
    for phase in ("phase_one", "phase_two"):
        shutil.copytree(whole / phase, tmp_path / "trained" / phase)
    return tmp_path / "trained"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ----- what a run leaves behind


def test_a_run_leaves_what_the_design_lists(whole):
    found = files(whole)
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
        assert (whole / phase / str(epoch) / "model").is_dir()
        assert any(name.startswith(f"{phase}/tensorboard/events") for name in found)
    for ending in (".png", ".md"):
        assert any(name.startswith("report/") and name.endswith(ending) for name in found)
    assert not [name for name in found if name.endswith(".partial")]


def test_without_tensorboard_a_run_keeps_its_rows(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # or the PyTorch that it imports
    row = {"epoch": 1, "step": 3, "split": "training", "loss": 0.5}
    with MetricsLog(tmp_path, "phase_one") as log, caplog.at_level("WARNING", "imta_jax"):
        log.write(row)
        log.write(row)
    assert len(log.path.read_text().splitlines()) == 2
    assert caplog.text.count("no TensorBoard events are written") == 1


def test_the_kept_config_is_the_one_given(config, whole):
    kept = json.loads((whole / "config.json").read_text())
    assert kept == json.loads(json.dumps(config.to_dict()))


def test_results_have_the_fields_of_the_design(results):
    assert results.keys() >= {"dataset", "phases", "exits", "budget_curve"}
    exits, curve = results["exits"], results["budget_curve"]
    assert [row["exit"] for row in exits] == [1, 2]
    for row in exits:
        assert row.keys() >= {"macs", "published_ops", "params", "top1", "top5", "ece"}
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


def test_threshold_methods_are_compared_at_the_reported_budgets(whole, results):
    points = results["threshold_methods"]["points"]
    for row in results["reported_budgets"]:
        at_budget = {p["method"]: p for p in points if p.get("budget") == row["budget"]}
        assert at_budget.keys() == {"sweep", "envelope", "temperature", "optimised"}
        assert at_budget["envelope"]["validation_top1"] >= row["validation_top1"]
        assert at_budget["optimised"]["validation_top1"] >= row["validation_top1"]
    assert (whole / "report" / "threshold_methods.png").exists()


def test_budgets_in_time_are_measured_and_drawn(config, whole, results, tmp_path):
    timed = shutil.copytree(whole, tmp_path / "timed")
    run(config, timed, mode="time")
    found = json.loads((timed / "evaluation" / "time.json").read_text())
    assert len(found["exit_ms"]) == 2 and 0 < found["exit_ms"][0] < found["exit_ms"][1]
    for row, of_macs in zip(found["budget_curve"], results["budget_curve"], strict=True):
        # The sweep's thresholds do not depend on costs: the same images leave at the same exits.
        assert row["thresholds"] == of_macs["thresholds"] and row["top1"] == of_macs["top1"]
        assert row["mean_ms"] == pytest.approx(np.dot(row["exit_fractions"], found["exit_ms"]))
    profile = json.loads((timed / "evaluation" / "stage_profile.json").read_text())
    assert np.shape(profile["stage_ms"]) == (2, len(profile["sizes"]))
    assert (timed / "report" / "time.png").exists()
    assert "milliseconds per image" in (timed / "report" / "index.html").read_text()


def test_time_needs_an_evaluated_run(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="--mode=evaluate"):
        run(config, tmp_path / "nothing", mode="time")


def test_time_is_measured_by_the_first_process_and_in_a_folder_it_has_to_itself(
    config, whole, tmp_path, monkeypatch
):
    timed = shutil.copytree(whole, tmp_path / "timed")
    with only_run_in(timed), pytest.raises(BlockingIOError, match="another run is at work"):
        run(config, timed, mode="time")
    with monkeypatch.context() as patch:
        patch.setattr(timing, "is_first_process", lambda: False)
        timing.time_run(timed)
    assert not (timed / "evaluation" / "time.json").exists()


def test_metrics_have_one_row_per_epoch_and_split(whole):
    for phase, epochs in (("phase_one", 3), ("phase_two", 2)):
        rows = metrics(whole / phase)
        seen = [(row["epoch"], row["step"], row["split"]) for row in rows]
        assert seen == [
            (e, 3 * e, split) for e in range(1, epochs + 1) for split in ("train", "validation")
        ]
        assert all(row["loss"] == pytest.approx(sum(row["loss_per_exit"])) for row in rows)


def test_samples_have_one_row_per_test_image_whose_cost_is_its_exits(whole, results):
    table = read_samples(whole / "evaluation" / "samples.parquet")
    assert table["index"].tolist() == list(range(tiny_run.TEST_IMAGES))
    assert table["label"].tolist() == [i % 3 for i in range(tiny_run.TEST_IMAGES)]
    costs = np.asarray([row["macs"] for row in results["exits"]])
    logits = load_predictions(whole / "evaluation" / "logits_test.npz").logits
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


def test_test_labels_decide_no_threshold(config, source, trained, results, tmp_path):
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


# ----- steps, and none of them twice


def test_a_second_start_does_nothing_again(config, whole, caplog):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    for step in ("phase_one", "phase_two", "evaluate"):
        assert f"{step}: already done in {whole}" in caplog.text
    assert "report: " in caplog.text


def test_nothing_is_loaded_for_a_finished_run(config, whole, monkeypatch):
    monkeypatch.setattr("imta_jax.cli.run.load_dataset", lambda data: pytest.fail("loaded"))
    run(config, whole)


def test_modes_are_the_steps_one_at_a_time(config, whole, results, tmp_path):
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
        name for name in files(whole) if "phase_" not in name
    }
    found = json.loads((tmp_path / "results.json").read_text())
    for field in ("exits", "budget_curve", "reported_budgets"):
        assert found[field] == results[field]


def test_report_is_drawn_again_when_asked_for_by_name(config, whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
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
def test_a_step_before_its_turn_says_what_to_do(mode, message, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=message):
        run(config, tmp_path, mode)


def test_without_a_second_phase_the_first_is_evaluated(source, trained):
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


def test_a_run_goes_on_where_memory_is_shared_otherwise(source, whole, trained, results):
    shutil.copy(whole / "config.json", trained)
    run(tiny_run.tiny_config(source, mesh__parameter_shards=4), trained, "evaluate")
    assert (trained / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    found = json.loads((trained / "results.json").read_text())
    assert [e["top1"] for e in found["exits"]] == [e["top1"] for e in results["exits"]]


# ----- what is refused


def test_another_config_is_refused_by_field_with_both_values(source, config, whole):
    before = (whole / "config.json").read_bytes()
    other = tiny_run.tiny_config(source, phase_one__learning_rate=0.5, seed=7)
    with pytest.raises(ValueError) as error:
        run(other, whole)
    message = str(error.value)
    assert "another --workdir" in message
    assert "config.phase_one.learning_rate: the folder's 0.05, now 0.5" in message
    assert "config.seed: the folder's 0, now 7" in message
    assert "batch_size" not in message
    assert (whole / "config.json").read_bytes() == before


def test_other_data_under_the_same_name_are_refused(trained, tmp_path):
    images, labels = tiny_run.draw_images(tiny_run.TRAIN_IMAGES, 0)
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    run(tiny_run.tiny_config(source), trained, "evaluate")
    (trained / "results.json").unlink()
    with np.load(source) as archive:
        arrays = dict(archive)
    np.savez(source, **arrays | {"train_images": images[1:], "train_labels": labels[1:]})
    before = files(trained)
    with pytest.raises(ValueError, match=r"bring them back.*\n  train: \d+ images then"):
        run(tiny_run.tiny_config(source), trained, "evaluate")
    assert files(trained) == before


def test_an_unknown_mode_is_refused_with_the_valid_ones(config, tmp_path):
    with pytest.raises(
        ValueError, match="'evalute'; valid, the closest first: evaluate, "
    ) as error:
        run(config, tmp_path, "evalute")
    assert all(mode in str(error.value) for mode in MODES)
    assert not files(tmp_path)


BAD_VALUES = {
    "data__source": ("nowhere.npz", "no file .*nowhere.npz"),
    "data__pipeline": ("tfdata", "valid, the closest first: tf_data, "),
    "data__validation_examples": (72, "validation_examples is 72"),
    "data__crop_padding": (-1, "crop_padding is -1"),
    "model__preset": ("cifar_9_exits", "valid, the closest first: cifar_4_exits, "),
    "model__num_exits": (0, "config.model.num_exits must be .* found 0"),
    "phase_one__total_epochs": (-1, "config.phase_one.total_epochs must be .* found -1"),
    "phase_one__batch_size": (12, "config.phase_one.batch_size=12 .* 8 devices.* 8 or 16"),
    "phase_one__equilibrium": ("al", "valid, the closest first: all, "),
    "phase_one__learning_rate": (0.0, "learning_rate must be above 0"),
    "phase_two__total_epochs": (-2, "config.phase_two.total_epochs must be .* found -2"),
    "phase_two__batch_size": (64, "batch_size is 64, but the training split has 48 examples"),
    "phase_two__transfer": ("identty", "valid, the closest first: identity, "),
    "phase_two__start": ("phase_on", "valid, the closest first: phase_one, "),
    "phase_two__alpha": (2.0, "alpha must lie in 0 to 1; found 2.0"),
    "phase_two__temperature": (0.0, "temperature must be above 0; found 0.0"),
    "phase_two__reduction": ("mean", "valid, the closest first: "),
    "phase_two__last_exit": ("plain", "valid, the closest first: "),
    "phase_two__from_checkpoint": ("bst", "valid, the closest first: best, last"),
    "phase_two__learning_rate_drops": ((90, 135), "shares of the training"),
    "evaluation__batch_size": (20, "config.evaluation.batch_size=20 .* 16 or 24"),
    "evaluation__checkpoint": ("latest", "valid, the closest first: last, best"),
    "evaluation__quotas": ((0.5, -1.0), "expected positive numbers"),
    "evaluation__reported_budgets": ((30.0,), "budget 30.0; expected a fraction"),
    "evaluation__calibration_bins": (0, "calibration_bins must be at least 1; found 0"),
}


@pytest.mark.parametrize("field", BAD_VALUES)
def test_a_bad_value_is_found_before_anything_is_written(field, source, tmp_path):
    value, message = BAD_VALUES[field]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tiny_run.tiny_config(source, **{field: value}), tmp_path)
    # Not even a config.json, which would stand in the way of the corrected config.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["phase_one", "phase_two", "evaluate"])
def test_a_bad_value_of_any_step_is_found_in_every_mode(mode, source, tmp_path):
    with pytest.raises(ValueError, match="total_epochs must be"):
        run(tiny_run.tiny_config(source, phase_one__total_epochs=-1), tmp_path, mode)
    assert not list(tmp_path.iterdir())
