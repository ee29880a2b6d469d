"""Progress of training for people: a bar on a terminal, and lines in the log."""

import logging
import time

import jax
from tqdm import tqdm

from imta_jax.runtime.progress_bar import format_duration, progress_bar, write_line
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.metrics import format_per_exit, mean_metrics
from imta_jax.training.objectives import ExitMetrics

_log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """A bar over all steps of the phase on a terminal."""

    _bar: tqdm | None = None

    def on_epoch_start(self, progress: Progress) -> None:
        """Shows the bar with the epoch's number."""
        self._close()
        self._bar = progress_bar(
            total=progress.total_steps,
            done=progress.step,
            description=f"{progress.phase} {progress.epoch + 1}/{progress.total_epochs}",
        )

    def on_step_end(self, progress: Progress) -> None:
        """Advances the bar."""
        if self._bar is not None:
            self._bar.update(progress.last_dispatch_steps)

    def on_epoch_end(self, progress: Progress) -> None:
        """Removes the bar."""
        self._close()

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class IntervalLines(Callback):
    """Logs loss, accuracy, throughput, input wait and time left at most every few seconds.

    Args:
      every_seconds: shortest time between two lines; 0 logs none.
    """

    def __init__(self, every_seconds: float):
        self._every_seconds = every_seconds
        self._metrics: list[ExitMetrics] = []
        self._start = self._waited = 0.0

    def on_epoch_start(self, progress: Progress) -> None:
        """Starts an interval; validation between epochs does not count."""
        self._begin(waited=0.0)

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        """Logs a line if the interval is over."""
        self._metrics += new
        seconds = time.perf_counter() - self._start
        if self._every_seconds and seconds >= self._every_seconds:
            write_line(_log, self._line(progress, seconds))
            self._begin(progress.input_wait_seconds)

    def _begin(self, waited: float) -> None:
        self._start, self._waited, self._metrics = time.perf_counter(), waited, []

    def _line(self, progress: Progress, seconds: float) -> str:
        steps, mean = len(self._metrics), mean_metrics(self._metrics)
        waited = progress.input_wait_seconds - self._waited
        left = (progress.total_steps - progress.step) * seconds / steps
        loss, top1 = mean.loss.tolist(), mean.top1.tolist()
        memory = peak_device_memory()
        return (
            f"{progress.phase} step {progress.step}/{progress.total_steps}:"
            f" loss {format_per_exit(loss, 3)}; top-1 {format_per_exit(top1, 1)};"
            f" {steps * progress.batch_size / seconds:,.0f} images/s;"
            f" {waited / seconds:.0%} waiting for input;"
            f"{f' {memory / 1e9:.2f} GB on the device;' if memory else ''}"
            f" about {format_duration(left)} left in this phase"
        )


class EpochLine(Callback):
    """Logs a line per epoch with the validation accuracy and the time left."""

    _start = 0.0

    def on_epoch_start(self, progress: Progress) -> None:
        """Starts the epoch's clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, progress: Progress) -> None:
        """Logs the line. The last epoch's time is used because the first one compiles."""
        epoch, total = progress.epoch + 1, progress.total_epochs
        left = (time.perf_counter() - self._start) * (total - epoch)
        top1 = format_per_exit(progress.validation_top1, 1)
        write_line(
            _log,
            f"{progress.phase} epoch {epoch}/{total}: validation top-1 {top1};"
            f" about {format_duration(left)} left in this phase",
        )


def device_memory_limit() -> int:
    """Memory of this process's first device in bytes; 0 if the backend does not report it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def peak_device_memory() -> int:
    """Peak memory use of this process's first device in bytes; 0 if it is not reported."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", statistics.get("bytes_in_use", 0))
