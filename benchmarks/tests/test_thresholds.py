"""The benchmark of threshold methods measures all of them. Times are not tested."""

import json
import sys

import numpy as np

from benchmarks import measurement, thresholds
from imta_jax.evaluation.methods.risk_control import GUARANTEES
from imta_jax.evaluation.predictions import anytime_accuracy

TINY = {"images": 60, "exits": 3, "classes": 5, "rounds": 2}


def test_synthetic_logits_are_more_accurate_at_later_exits():
    predictions = thresholds.synthetic_logits(TINY | {"images": 2000, "classes": 100}, seed=0)
    accuracy = anytime_accuracy(predictions)
    assert (np.diff(accuracy) > 2).all() and accuracy[0] > 30 and accuracy[-1] < 99


def test_every_method_is_timed(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    monkeypatch.setattr(thresholds, "QUICK", TINY)
    monkeypatch.setattr(measurement, "in_own_process", lambda function, *args: function(*args))
    monkeypatch.setattr(sys, "argv", ["", "--quick", f"--out={out}"])
    thresholds.main()
    result = json.loads(out.read_text())
    assert {"hardware", "versions", "seeds", "rows", "summary", "targets"} <= result.keys()
    timed = {row["method"] for row in result["rows"] if row["part"] == "one by one"}
    expected = {"sweep", "envelope", "optimised", "temperature", "patience", *GUARANTEES}
    assert timed == expected | {"confidence", "scaled_confidence"}
    assert result["summary"].keys() == {*thresholds.TARGETS, "spread"}
    assert all(result["summary"][name] > 0 for name in thresholds.TARGETS)
