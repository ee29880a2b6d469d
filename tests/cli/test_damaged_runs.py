"""Damaged files of a run folder."""

import json
import logging
import shutil

import pytest

from imta_jax.cli.run import run
from imta_jax.evaluation import evaluation_is_finished, read_budget_curve
from imta_jax.inference.finished_run import load_finished_run
from imta_jax.report.run.run_record import load_run


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
    actual, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (copy, finished)
    )
    assert actual["exits"] == expected["exits"]
    assert actual["phases"]["phase_one"] == expected["phases"]["phase_one"]
    assert actual["phases"]["phase_two"]["epochs"] == 2
    assert actual["phases"]["phase_two"]["seconds"] is None


def test_damaged_results_are_named_by_what_reads_them(config, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "results.json").write_text("")
    for read in (lambda: run(config, copy, "report"), lambda: run(config, copy, "time")):
        with pytest.raises(ValueError, match=r"results\.json is empty .*--mode=evaluate"):
            read()


@pytest.mark.parametrize("content", [{}, {"environment": None}, {"exits": "x"}])
def test_incomplete_results_are_named_by_what_reads_them(content, finished, tmp_path, caplog):
    copy = shutil.copytree(finished, tmp_path / "copy")
    results = json.loads((copy / "results.json").read_text()) if content else {}
    (copy / "results.json").write_text(json.dumps(results | content))
    section = next(iter(content), "dataset")
    with pytest.raises(ValueError, match=rf"{copy}/results\.json is incomplete.* {section}"):
        load_finished_run(copy)
    with pytest.raises(ValueError, match=rf"{copy}/results\.json is incomplete.* {section}"):
        read_budget_curve(copy)
    assert not evaluation_is_finished(copy)
    assert f"{copy}/results.json is incomplete: missing {section}" in caplog.text


@pytest.mark.parametrize("column", ["macs", "thresholds", "evaluated_phase", "checkpoint_epoch"])
def test_a_missing_value_of_the_results_is_named(column, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    results = json.loads((copy / "results.json").read_text())
    rows = {
        "macs": results["exits"][0],
        "thresholds": results["budget_curve"][-1],
        "evaluated_phase": results["environment"],
        "checkpoint_epoch": results["phases"]["phase_two"],
    }
    del rows[column][column]
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"{copy}/results\.json.*{column}"):
        load_finished_run(copy)


@pytest.mark.parametrize(
    ("section", "column", "value"),
    [
        ("exits", "macs", "x"),
        ("budget_curve", "thresholds", None),
        ("budget_curve", "top1", {}),
        ("budget_curve", "exit_fractions", 1),
        ("reported_budgets", "budget", None),
    ],
)
def test_a_value_of_another_type_in_the_results_is_named(
    section, column, value, finished, tmp_path
):
    results = json.loads((finished / "results.json").read_text())
    results[section][0][column] = value
    (tmp_path / "results.json").write_text(json.dumps(results))
    for read in (read_budget_curve, load_run):
        with pytest.raises(ValueError, match=rf"results\.json.*{section}\[0\]\.{column}"):
            read(tmp_path)


def test_an_incomplete_config_is_named(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^{copy}/config\.json is incomplete"):
        load_finished_run(copy)
