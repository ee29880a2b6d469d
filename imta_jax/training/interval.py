"""One line per interval of training: how well, how fast, what it waits for, how long still."""

import dataclasses
import logging
import time
from collections.abc import Sequence

import jax
import numpy as np

from imta_jax.runtime.progress_bar import format_duration, write_line
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.progress import per_exit

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class IntervalLines:
    """Tells of the steps since the last line, when that is long enough ago.

    Attributes:
      phase: its name.
      steps_per_epoch, total_epochs, batch_size: how long and how large.
      every_seconds: the interval; 0 for no lines.
    """

    phase: str
    steps_per_epoch: int
    total_epochs: int
    batch_size: int
    every_seconds: float

    def __post_init__(self) -> None:
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Starts an interval: what lies between epochs is none of it."""
        self._since, self._waited, self._metrics = time.perf_counter(), 0.0, []

    def add(self, step: int, metrics: Sequence[ExitMetrics], waited: float) -> None:
        """Takes the metrics of some more steps, up to `step`, and writes a line if it is due.

        Args:
          step: steps done, of the phase.
          metrics: of the steps since the last call.
          waited: seconds spent waiting for input in this epoch so far.
        """
        self._metrics += metrics
        seconds = time.perf_counter() - self._since
        if not self.every_seconds or seconds < self.every_seconds or not self._metrics:
            return
        write_line(_log, self._line(step, seconds, waited - self._waited))
        self._since, self._waited, self._metrics = time.perf_counter(), waited, []

    def _line(self, step: int, seconds: float, waited: float) -> str:
        total, done = self.steps_per_epoch * self.total_epochs, len(self._metrics)
        loss, top1 = (
            per_exit(np.mean([m[i] for m in self._metrics], 0), digits)
            for i, digits in ((0, 3), (1, 1))
        )
        memory = device_memory()
        return (
            f"{self.phase} step {step}/{total}: loss {loss}; top-1 {top1};"
            f" {done * self.batch_size / seconds:,.0f} images/s; {waited / seconds:.0%} waiting for"
            f" input;{f' {memory / 1e9:.2f} GB on the device;' if memory else ''}"
            f" about {format_duration((total - step) * seconds / done)} left in this phase"
        )


def device_limit() -> int:
    """Bytes of the first device of this process; 0 where it does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def device_memory() -> int:
    """Bytes in use on the first device of this process, at their peak; 0 where it does not tell."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", statistics.get("bytes_in_use", 0))
