"""Writers of metrics: `metrics.jsonl` and TensorBoard events."""

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from imta_jax.distributed import is_first_process
from imta_jax.runtime.files import write_atomically
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_log = logging.getLogger(__name__)


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
        """Deletes the rows of epochs that will be trained again, and incomplete lines."""
        if not is_first_process() or not self.path.exists():
            return
        # The last line of a killed run may be incomplete.
        lines = self.path.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        rows = [row for row in rows if row["epoch"] <= progress.epoch]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Appends the row."""
        if not is_first_process():
            return
        with self._write_errors.writing("metrics", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"phase": progress.phase, **row}) + "\n")


class TensorBoardWriter(Callback):
    """Writes the numbers of each row as TensorBoard scalars; only the first process writes.

    Scalars are named SPLIT/METRIC or, for values per exit, SPLIT/METRIC/EXIT.

    Args:
      folder: the phase's folder; events go to its `tensorboard` folder.
      write_errors: what happens when events cannot be written.
    """

    def __init__(self, folder: Path, write_errors: WriteErrorPolicy):
        self._folder, self._write_errors = folder, write_errors

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the event file."""
        if events := vars(self).get("_events"):  # Absent if nothing was written.
            events.close()

    @functools.cached_property
    def _events(self) -> "SummaryWriter | None":
        """The event writer, created with the first row.

        tensorboardX imports PyTorch if it is installed, which takes a second. A broken PyTorch must
        not end a training, which also has `metrics.jsonl`.
        """
        try:
            from tensorboardX import SummaryWriter
        except Exception as error:
            _log.warning("no TensorBoard events are written: %s: %s", type(error).__name__, error)
            return None
        return SummaryWriter(str(self._folder / "tensorboard"))

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Writes the row's numbers."""
        if not is_first_process() or self._events is None:
            return
        with self._write_errors.writing("TensorBoard events", self._folder):
            for name, value in row.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])
                elif isinstance(value, list):
                    for i, entry in enumerate(value, start=1):
                        self._events.add_scalar(f"{row['split']}/{name}/{i}", entry, row["step"])
            self._events.flush()
