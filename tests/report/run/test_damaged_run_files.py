"""Damaged files of an evaluation: the report names them and does without them."""

import json
import os

import pandas as pd
import pytest
from run_samples import write_run

from imta_jax import report
from imta_jax.errors import UserError
from imta_jax.evaluation import read_budget_curve

FILES = ("samples.parquet", "gallery.npz", "calibration.npz")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_bytes(b""), pipe], ids=["cut", "empty", "pipe"]
)
@pytest.mark.parametrize("name", FILES)
def test_the_report_names_a_damaged_file_and_does_without_it(name, damage, tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    damage(folder / "evaluation" / name)
    report.write_report(folder)
    assert (folder / "report" / "index.html").exists()
    message = next(m for m in caplog.messages if "damaged" in m)
    assert name in message and "results.json" in message and "--mode=evaluate" in message


@pytest.mark.parametrize(
    "row",
    [
        {"epoch": "x"},
        {"epoch": 3},
        {"epoch": 3, "step": 9, "split": "train", "loss": "x", "top1_per_exit": [1.0] * 4},
        {"epoch": 3, "step": 9, "split": "train", "loss": 1.0, "top1_per_exit": [1.0]},
        {"epoch": 3, "step": 9, "split": "train", "loss": 1.0, "top1_per_exit": [None] * 4},
    ],
)
def test_rows_without_valid_metrics_are_skipped_with_a_warning(row, tmp_path, caplog):
    folder = write_run(tmp_path / "run", epochs=(2, 0))
    expected = report.read_metrics(folder)
    path = folder / "phase_one" / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    pd.testing.assert_frame_equal(report.read_metrics(folder), expected)
    assert f"{path}: 1 of 5 rows" in caplog.text


def test_a_file_named_report_is_an_error_with_its_path(tmp_path):
    folder = write_run(tmp_path / "run", epochs=(1, 0))
    (folder / "report").write_text("")
    with pytest.raises(FileExistsError, match=rf"{folder}/report is a file.*delete") as caught:
        report.write_report(folder)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04"])
def test_thresholds_from_damaged_logits_name_the_file_and_the_fix(content, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "evaluation").mkdir(exist_ok=True)
    path = folder / "evaluation" / "logits_validation.npz"
    if content is not None:
        path.write_bytes(content)
    # Results of older versions lack the exit fractions, which are then computed from the logits.
    results = folder / "results.json"
    results.write_text(results.read_text().replace("validation_exit_fractions", "former_name"))
    with pytest.raises(ValueError, match=r"logits_validation\.npz.*results\.json.*--mode=evaluate"):
        read_budget_curve(folder)
