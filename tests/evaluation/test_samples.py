"""Per-image results: the Parquet table and invalid input."""

import numpy as np
import pandas as pd
import pytest
from sample_logits import COSTS, split

from imta_jax.evaluation import Decisions, decisions, predictions, read_samples, write_samples


def sample_decisions(num_images: int) -> Decisions:
    logits = split(3, num_images).logits
    confidence, classes = predictions.confidence(logits), predictions.predicted(logits)
    return decisions(confidence, classes, COSTS, [0.5, 0.5, 0.5, -1e8])


def test_written_samples_are_read_unchanged(tmp_path):
    path, made = tmp_path / "evaluation" / "samples.parquet", sample_decisions(20)
    index, labels = np.arange(20)[::-1], split(3, 20).labels
    by_budget = {0.3: made, 0.7: made}
    write_samples(path, index=index, labels=labels, decisions_by_budget=by_budget)
    table = read_samples(path)
    parts = ("exit", "prediction", "confidence", "macs")
    columns = [f"budget_{percent}_{part}" for percent in (30, 70) for part in parts]
    assert list(table.columns) == ["index", "label", *columns]
    np.testing.assert_array_equal(table["index"], index)
    np.testing.assert_array_equal(table["label"], labels)
    for values, part in zip(made, parts, strict=True):
        np.testing.assert_array_equal(table[f"budget_30_{part}"], values)
    assert [file.name for file in path.parent.iterdir()] == ["samples.parquet"]


@pytest.mark.parametrize(
    ("index", "budget", "message"),
    [
        ([0, 1, 1], 0.3, r"index 1\b.*2"),
        ([0, 1, -1], 0.3, r"index -1\b.*2"),
        ([0.0, 1.0, 2.0], 0.3, "index.*float64"),
        ([0, 1, 2, 3], 0.3, r"label.*\(3,\)"),
        ([0, 1, 2], 30, "budget=30"),
        ([0, 1, 2], 0.0, r"budget=0\.0"),
    ],
)
def test_invalid_samples_raise(tmp_path, index, budget, message):
    path = tmp_path / "samples.parquet"
    with pytest.raises(ValueError, match=message):
        write_samples(
            path,
            index=np.array(index),
            labels=np.zeros(3, int),
            decisions_by_budget={budget: sample_decisions(3)},
        )
    assert not path.exists()


def test_file_without_a_sample_table_raises_with_its_name(tmp_path):
    path = tmp_path / "samples.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"samples\.parquet"):
        read_samples(path)
    pd.DataFrame({"index": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"samples\.parquet.*label"):
        read_samples(path)
