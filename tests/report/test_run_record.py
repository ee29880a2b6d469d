"""Reading a run's folder, and the made-up but plausible folder that the report's tests read."""

import pytest
from run_samples import write_run

from imta_jax import report


def test_missing_results_name_the_command_that_writes_them(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results\.json.*python launch\.py.*--mode=evaluate"
    ):
        report.write_report(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"dataset": {"name": "x"}, "exits": []}'])
def test_damaged_results_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json.*(not valid JSON|has no phases)"):
        report.load_run(tmp_path)


def test_metrics_of_a_killed_and_resumed_run_count_each_epoch_once(tmp_path):
    folder = write_run(tmp_path / "run", epochs=(3, 0))
    path = folder / "phase_one" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:20], *lines[2:]]) + "\n")
    metrics = report.load_run(folder).metrics
    assert metrics[metrics["split"] == "train"]["epoch"].to_list() == [1, 2, 3]


def test_a_run_that_still_trains_has_a_log_and_nothing_else(tmp_path):
    workdir = write_run(tmp_path)
    (workdir / "results.json").unlink()
    found = report.load_progress(workdir)
    assert found.num_exits == 4 and len(found.metrics) == 2 * (30 + 18)
    assert "still training" in repr(found)


def test_a_run_without_an_epoch_has_no_progress(tmp_path):
    assert report.read_metrics(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="first epoch"):
        report.load_progress(tmp_path)
