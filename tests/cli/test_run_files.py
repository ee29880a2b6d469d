"""The files that a run writes."""

import json

import numpy as np
import pytest
import tiny_run
from run_folders import files, metrics

from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.evaluation import exit_of, load_predictions, read_samples
from imta_jax.evaluation.predictions import confidence


def test_a_run_writes_the_documented_files(finished):
    actual = files(finished)
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
        assert name in actual
    for phase, epoch in (("phase_one", 3), ("phase_two", 2)):
        assert (finished / phase / str(epoch) / "model").is_dir()
        assert any(name.startswith(f"{phase}/tensorboard/events") for name in actual)
    for ending in (".png", ".md"):
        assert any(name.startswith("report/") and name.endswith(ending) for name in actual)
    assert not [name for name in actual if name.endswith(".partial")]


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
    assert results["environment"].keys() >= {"device", "versions", "command", "commit"}


def test_threshold_methods_are_compared_at_the_reported_budgets(finished, results):
    points = results["threshold_methods"]["points"]
    for row in results["reported_budgets"]:
        at_budget = {p["method"]: p for p in points if p.get("budget") == row["budget"]}
        assert at_budget.keys() >= {"sweep", "envelope", "temperature", "optimised"}
        assert at_budget["envelope"]["validation_top1"] >= row["validation_top1"]
        assert at_budget["optimised"]["validation_top1"] >= row["validation_top1"]
    assert (finished / "report" / "threshold_methods.png").exists()


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
    actual = json.loads((trained / "results.json").read_text())
    for field in ("budget_curve", "reported_budgets"):
        for row, before in zip(actual[field], results[field], strict=True):
            assert row["thresholds"] == before["thresholds"]
            assert row["validation_top1"] == before["validation_top1"]
    assert actual["exits"][1]["top1"] != results["exits"][1]["top1"]
