"""Progress of training: a bar on a terminal, and lines in the log.

The first dispatch of a phase returns after the step was traced and compiled. Estimates of the time
left exclude the time up to then.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from imta_jax.runtime.progress_bar import format_duration, progress_bar, write_line
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.metrics import format_per_exit, mean_metrics
from imta_jax.training.objectives import ExitMetrics

_log = logging.getLogger(__name__)


class CompilationLines(Callback):
    """Logs that the training step is being compiled, and how long that took."""

    _start: float | None = None
    _is_compiled = False

    def on_step_start(self, progress: Progress) -> None:
        """Logs a line before the first dispatch."""
        if self._start is None:
            self._start = time.perf_counter()
            write_line(_log, f"{progress.phase}: compiling the training step")

    def on_step_end(self, progress: Progress) -> None:
        """Logs a line after the first dispatch."""
        if not self._is_compiled and self._start is not None:
            self._is_compiled = True
            seconds = time.perf_counter() - self._start
            write_line(
                _log, f"{progress.phase}: the first step was dispatched after {seconds:.1f} s"
            )


class ProgressBar(Callback):
    """A bar over all steps of the phase on a terminal, with the last exit's loss and images/s.

    Before the first dispatch has returned, it shows that the training step is being compiled.
    """

    _bar: tqdm | None = None
    _is_compiled = False
    _checked = 0.0

    def on_epoch_start(self, progress: Progress) -> None:
        """Shows the bar with the epoch's number."""
        self._close()
        self._bar = progress_bar(
            total=progress.total_steps,
            done=progress.step,
            description=f"{progress.phase} {progress.epoch + 1}/{progress.total_epochs}",
        )
        if not self._is_compiled:
            self._bar.set_postfix_str("compiling")
        self._checked = time.perf_counter()

    def on_step_end(self, progress: Progress) -> None:
        """Advances the bar."""
        if self._bar is not None:
            if not self._is_compiled:
                self._bar.unpause()
                self._bar.set_postfix_str("", refresh=False)
                self._checked = time.perf_counter()
            self._bar.update(progress.last_dispatch_steps)
        self._is_compiled = True

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        """Shows the last exit's loss and the throughput since the last check."""
        if self._bar is None or not new:
            return
        now = time.perf_counter()
        images = len(new) * progress.batch_size / max(now - self._checked, 1e-9)
        loss = mean_metrics(new).loss[-1]
        self._bar.set_postfix_str(f"loss {loss:.3f}, {images:,.0f} images/s", refresh=False)
        self._checked = now

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
        self._is_compiled = False

    def on_epoch_start(self, progress: Progress) -> None:
        """Starts an interval; validation between epochs does not count."""
        self._begin(waited=0.0)

    def on_step_end(self, progress: Progress) -> None:
        """Starts the first interval again after the first dispatch."""
        if not self._is_compiled:
            self._is_compiled = True
            self._begin(progress.input_wait_seconds)

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
    """Logs a line per epoch with the validation accuracy and the time left.

    The estimate is the time of the last epoch. Of an epoch that was resumed, the time per step is
    used.
    """

    def __init__(self) -> None:
        self._start, self._first_step, self._training_seconds = 0.0, 0, 0.0
        self._is_compiled = False

    def on_epoch_start(self, progress: Progress) -> None:
        """Starts the epoch's clock."""
        self._start, self._first_step = time.perf_counter(), progress.step_in_epoch

    def on_step_end(self, progress: Progress) -> None:
        """Starts the clock again after the first dispatch."""
        if not self._is_compiled:
            self._is_compiled, self._start = True, time.perf_counter()

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Reads the clock at the end of training, before the validation."""
        if row["split"] == "train":
            self._training_seconds = time.perf_counter() - self._start

    def on_epoch_end(self, progress: Progress) -> None:
        """Logs the line."""
        epoch, total = progress.epoch + 1, progress.total_epochs
        steps = progress.steps_per_epoch - self._first_step
        training = self._training_seconds * progress.steps_per_epoch / max(steps, 1)
        other_seconds = time.perf_counter() - self._start - self._training_seconds
        left = (training + other_seconds) * (total - epoch)
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
