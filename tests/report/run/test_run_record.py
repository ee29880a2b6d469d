"""Records of runs: complete, damaged, resumed and in training."""

import json

import pytest
from run_samples import write_run

from imta_jax import report


def test_missing_results_name_the_command_that_writes_them(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results\.json.*python launch\.py.*--mode=evaluate"
    ):
        report.write_report(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"dataset": {"name": "x"}, "exits": []}'])
def test_damaged_results_are_rejected(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/results\.json"):
        report.load_run(tmp_path)


def test_metrics_of_a_resumed_run_have_each_epoch_once(tmp_path):
    folder = write_run(tmp_path / "run", epochs=(3, 0))
    path = folder / "phase_one" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:20], *lines[2:]]) + "\n")
    metrics = report.load_run(folder).metrics
    assert metrics[metrics["split"] == "train"]["epoch"].to_list() == [1, 2, 3]


def test_a_run_in_training_has_metrics_only(tmp_path):
    workdir = write_run(tmp_path)
    (workdir / "results.json").unlink()
    record = report.load_progress(workdir)
    assert record.num_exits == 4 and len(record.metrics) == 2 * (30 + 18)
    assert "still training" in repr(record)


def test_a_run_before_its_first_epoch_has_no_metrics(tmp_path):
    assert report.read_metrics(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        report.load_progress(tmp_path)


def test_a_record_of_results_in_memory_has_the_tables_of_the_run(tmp_path):
    workdir = write_run(tmp_path / "run")
    results = json.loads((workdir / "results.json").read_text())
    record = report.run_record(results, gallery={"label": [1]})
    assert report.exits_table(record).equals(report.exits_table(report.load_run(workdir)))
    assert record.gallery == {"label": [1]} and record.metrics is None and record.config == {}
    with pytest.raises(ValueError, match="results is incomplete: missing exits"):
        report.run_record(results | {"exits": []})
