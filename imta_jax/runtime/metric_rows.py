"""Reads the rows of `metrics.jsonl`, the metrics of a phase per epoch and split."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from imta_jax.runtime.json_files import read_json_lines

_log = logging.getLogger(__name__)

_NUMBERS = ("learning_rate", "images_per_second", "input_wait_share")  # of the training split


def read_metric_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a file written by `training.callbacks.JsonlWriter`; none without the file.

    Damaged lines are skipped with a warning, and so are rows without valid metrics, for example
    with a text as epoch or with another number of exits than most rows.
    """
    rows = read_json_lines(path)
    valid = [row for row in rows if _is_valid(row)]
    lengths = Counter(len(row["top1_per_exit"]) for row in valid)
    valid = [row for row in valid if len(row["top1_per_exit"]) == lengths.most_common(1)[0][0]]
    if len(valid) < len(rows):
        damaged = len(rows) - len(valid)
        _log.warning("%s: %d of %d rows have no valid metrics: skipped", path, damaged, len(rows))
    return valid


def _is_valid(row: dict[str, Any]) -> bool:
    accuracies = row.get("top1_per_exit")
    return (
        all(type(row.get(name)) is int for name in ("epoch", "step"))
        and row["epoch"] >= 1
        and isinstance(row.get("split"), str)
        and isinstance(accuracies, list)
        and len(accuracies) > 0
        and all(map(_is_number, [row.get("loss"), *accuracies]))
        and all(_is_number(row[name]) for name in _NUMBERS if name in row)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
