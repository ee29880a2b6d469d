"""Writers of metrics: `metrics.jsonl` and TensorBoard events."""

import json
import logging
import os
import platform
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imta_jax.distributed import is_first_process
from imta_jax.runtime.files import append_or_restore, write_atomically
from imta_jax.runtime.json_files import append_json_line, read_json_lines
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress

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
        """Deletes the rows of epochs that will be trained again, and damaged lines."""
        if not is_first_process() or not self.path.exists():
            return
        with self._write_errors.writing("metrics", self._folder):
            rows = [row for row in read_json_lines(self.path) if row["epoch"] <= progress.epoch]
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Appends the row."""
        if not is_first_process():
            return
        with self._write_errors.writing("metrics", self._folder):
            append_json_line(self.path, {"phase": progress.phase, **row})


class TensorBoardWriter(Callback):
    """Writes the numbers of each row as TensorBoard scalars; only the first process writes.

    Scalars are named SPLIT/METRIC or, for values per exit, SPLIT/METRIC/EXIT.

    Args:
      folder: the phase's folder; events go to its `tensorboard` folder.
      write_errors: what happens when events cannot be written.
    """

    def __init__(self, folder: Path, write_errors: WriteErrorPolicy):
        self._folder, self._write_errors = folder, write_errors
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._path = folder / "tensorboard" / name
        self._enabled = True

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Writes the row's numbers."""
        if not is_first_process() or not self._is_available():
            return
        with self._write_errors.writing("TensorBoard events", self._folder):
            new = not self._path.exists()
            append_or_restore(self._path, b"".join(_records(row, with_header=new)))

    def _is_available(self) -> bool:
        """Whether tensorboardX can be imported.

        It imports PyTorch if that is installed, which takes a second. A broken PyTorch must not end
        a training, which also has `metrics.jsonl`.
        """
        try:
            import tensorboardX  # noqa: F401
        except Exception as error:
            if self._enabled:
                kind = type(error).__name__
                _log.warning("no TensorBoard events are written: %s: %s", kind, error)
            self._enabled = False
        return self._enabled


def _records(row: Mapping[str, Any], *, with_header: bool) -> Iterator[bytes]:
    """The events of a row in the TFRecord format; the first event of a file is its version.

    tensorboardX's own `SummaryWriter` writes in a thread, which ends at the first failed write.
    Later calls wait for that thread forever.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import scalar

    now = time.time()
    header = [Event(wall_time=now, file_version="brain.Event:2")] if with_header else []
    events = [Event(wall_time=now, step=row["step"], summary=scalar(*s)) for s in _scalars(row)]
    for event in header + events:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        for part in (length, content):
            yield part + struct.pack("<I", masked_crc32c(part))


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of a row's numbers."""
    for name, value in row.items():
        if isinstance(value, float):
            yield f"{row['split']}/{name}", value
        elif isinstance(value, list):
            for i, entry in enumerate(value, start=1):
                yield f"{row['split']}/{name}/{i}", entry
