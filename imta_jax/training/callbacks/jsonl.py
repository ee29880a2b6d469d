"""Writes `metrics.jsonl`, which resumed runs and the report read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.runtime.agreement import run_in_first_process
from imta_jax.runtime.files import write_atomically
from imta_jax.runtime.json_files import append_json_line
from imta_jax.runtime.metric_rows import read_metric_rows
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress


class JsonlWriter(Callback):
    """Appends a row per epoch and split to `metrics.jsonl`; only the first process writes.

    Rows have `phase`, `epoch` (from 1), `step`, `split`, `loss` (summed over exits, nats),
    `loss_per_exit` and `top1_per_exit` (percent). Rows of the training split also have
    `learning_rate`, `images_per_second` and `input_wait_share`.

    Args:
      folder: the phase's folder.
      write_errors: what happens when a row cannot be written.
    """

    def __init__(self, folder: Path, write_errors: WriteErrorPolicy):
        self._folder, self._write_errors = folder, write_errors

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.jsonl"

    def on_train_start(self, progress: Progress) -> None:
        """Deletes the rows of epochs that will be trained again, and damaged lines."""
        with self._write_errors.writing("metrics", self._folder):
            run_in_first_process(lambda: self._delete_rows_after(progress.epoch))

    def _delete_rows_after(self, epoch: int) -> None:
        if self.path.exists():
            rows = [row for row in read_metric_rows(self.path) if row["epoch"] <= epoch]
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Appends the row."""
        line = {"phase": progress.phase, **row}
        with self._write_errors.writing("metrics", self._folder):
            run_in_first_process(lambda: append_json_line(self.path, line))
