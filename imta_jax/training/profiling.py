"""A profiler's trace of a few steps, for TensorBoard or Perfetto."""

import logging
from pathlib import Path
from typing import Any

import jax

_log = logging.getLogger(__name__)


class StepProfiler:
    """Traces from step A to step B of a phase, each process its own devices; ends with an epoch.

    Args:
      folder: the trace goes to its `profile`.
      steps: (A, B), counted from 0 over the phase; (0, 0) for none.

    Raises:
      ValueError: B before A, or a negative number.
    """

    def __init__(self, folder: Path, steps: tuple[int, int]):
        check_profile_steps(steps)
        self._folder, (self._first, self._last) = folder / "profile", steps
        self._running = False

    def at(self, step: int, result: Any) -> None:
        """To be called before every step, and after the last.

        Args:
          step: about to be done.
          result: of the step before; waited for where the trace ends.
        """
        if self._running and step >= self._last:
            self.close(result)
        elif not self._running and self._first <= step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self, result: Any) -> None:
        """Ends a trace that runs."""
        if self._running:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running, self._last = False, 0
            _log.info("profile: tensorboard --logdir %s", self._folder)


def check_profile_steps(steps: tuple[int, int]) -> None:
    """Refuses what is not two steps in order: a ValueError."""
    if len(steps) != 2 or not 0 <= steps[0] <= steps[1]:
        raise ValueError(
            f"config.log.profile_steps is {tuple(steps)}, expected (A, B) with 0 <= A <= B"
        )
