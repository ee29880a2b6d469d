"""TensorBoard events, a metrics writer."""

import logging
import os
import platform
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imta_jax.runtime.files import append_or_restore
from imta_jax.runtime.registry import register_metrics_writer
from imta_jax.training.callbacks.metrics_writers import LoggedRun

_log = logging.getLogger(__name__)


@register_metrics_writer("tensorboard")
def make_tensorboard_writer(options: Any, *, run: LoggedRun) -> "TensorBoardWriter":
    """A writer of events into the phase's `tensorboard` folder; it has no options."""
    return TensorBoardWriter(run.folder / "tensorboard")


class TensorBoardWriter:
    """Appends events to a file of its own.

    Args:
      folder: folder of the file; created at the first event.
    """

    def __init__(self, folder: Path):
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._path = folder / name
        self._enabled = True

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one event per scalar."""
        if self._is_available():
            new = not self._path.exists()
            append_or_restore(self._path, b"".join(_records(step, scalars, with_header=new)))

    def close(self) -> None:
        """Does nothing: each write closes the file."""

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


def _records(step: int, scalars: Mapping[str, float], *, with_header: bool) -> Iterator[bytes]:
    """The events of scalars in the TFRecord format; the first event of a file is its version.

    tensorboardX's own `SummaryWriter` writes in a thread, which ends at the first failed write.
    Later calls wait for that thread forever.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import scalar

    now = time.time()
    header = [Event(wall_time=now, file_version="brain.Event:2")] if with_header else []
    summaries = (scalar(name, value) for name, value in scalars.items())
    events = [Event(wall_time=now, step=step, summary=summary) for summary in summaries]
    for event in header + events:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        for part in (length, content):
            yield part + struct.pack("<I", masked_crc32c(part))
