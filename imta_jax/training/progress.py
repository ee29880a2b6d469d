"""What a person and a machine see of a training: a line per epoch, JSONL and TensorBoard."""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from imta_jax.distributed import is_first_process
from imta_jax.runtime.files import write_atomically
from imta_jax.runtime.progress_bar import format_duration, write_line

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_log = logging.getLogger(__name__)

# More exits than a network has: those of several arms that are trained together.
_SHOWN_EXITS = 16


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events of one phase; use as a context manager.

    Rows are objects with phase, epoch (from 1), step, split, loss (summed over exits, nats),
    loss_per_exit and top1_per_exit (percent); rows of the training split also have learning_rate,
    images_per_second and input_wait_share. Of several processes the first one writes.
    """

    def __init__(self, folder: Path, phase: str):
        self._folder, self._phase = folder, phase

    def __enter__(self) -> Self:
        self._writes = is_first_process()
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if events := vars(self).get("_events"):  # made if anything was written
            events.close()

    @functools.cached_property
    def _events(self) -> "SummaryWriter | None":
        """TensorBoard's writer, made when there is something to write.

        tensorboardX imports PyTorch where it is installed: that takes a second of a launch, and of
        a broken PyTorch a training that has its rows anyway must not end.
        """
        try:
            from tensorboardX import SummaryWriter
        except Exception as error:
            _log.warning("no TensorBoard events are written: %s: %s", type(error).__name__, error)
            return None
        return SummaryWriter(str(self._folder / "tensorboard"))

    @property
    def path(self) -> Path:
        """Where the rows are."""
        return self._folder / "metrics.jsonl"

    def forget_after(self, epoch: int) -> None:
        """Drops rows of later epochs: they will be run again from the checkpoint of `epoch`."""
        if not self._writes or not self.path.exists():
            return
        rows = [json.loads(line) for line in _whole_lines(self.path)]
        kept = [json.dumps(row) + "\n" for row in rows if row["epoch"] <= epoch]
        write_atomically(self.path, "".join(kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row, and its numbers to TensorBoard as split/name/exit."""
        if not self._writes:
            return
        row = {"phase": self._phase, **row}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is None:
            return
        for name, value in row.items():
            if isinstance(value, float):
                self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])
            elif isinstance(value, list):
                for i, entry in enumerate(value, start=1):
                    self._events.add_scalar(f"{row['split']}/{name}/{i}", entry, row["step"])
        self._events.flush()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that end in a newline; a kill may have left a part of one."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def log_epoch(
    phase: str, epoch: int, total: int, validation_top1: list[float], seconds_left: float
) -> None:
    """One plain line per epoch, on a terminal above the bar and in a log."""
    message = (
        f"{phase} epoch {epoch}/{total}: validation top-1 {per_exit(validation_top1, 1)}; "
        f"about {format_duration(seconds_left)} left in this phase"
    )
    write_line(_log, message)


def per_exit(values: Sequence[float], digits: int) -> str:
    """Values as a line shows them: each or, of the exits of many arms, their span."""
    if len(values) <= _SHOWN_EXITS:
        return "per exit " + " ".join(f"{value:.{digits}f}" for value in values)
    return f"of {len(values)} exits {min(values):.{digits}f} to {max(values):.{digits}f}"
