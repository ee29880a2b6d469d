"""A profiler trace of a few steps, for TensorBoard or Perfetto."""

import logging
from pathlib import Path
from types import TracebackType

import jax

from imta_jax.training.callbacks.base import Callback, Progress

_log = logging.getLogger(__name__)


class StepProfiler(Callback):
    """Traces steps A to B of a phase. Each process traces its devices. Ends with the epoch.

    Args:
      folder: the trace goes to its `profile` folder.
      steps: (A, B), counted from 0 over the phase; (0, 0) traces none.
    """

    def __init__(self, folder: Path, steps: tuple[int, int]):
        self._folder, (self._first, self._last) = folder / "profile", steps
        self._running = self._done = False

    def on_step_start(self, progress: Progress) -> None:
        """Starts the trace before step A."""
        if not self._done and not self._running and self._first <= progress.step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def on_step_end(self, progress: Progress) -> None:
        """Ends the trace after step B - 1, or the last step of the epoch."""
        last_of_epoch = progress.step_in_epoch >= progress.steps_per_epoch
        if self._running and (progress.step >= self._last or last_of_epoch):
            jax.block_until_ready(progress.state)
            self._stop()
            _log.info("profile: tensorboard --logdir %s", self._folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends a trace that an error interrupted."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running, self._done = False, True
