"""Stops training when the loss or a gradient is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.errors import UserError
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.objectives import ExitMetrics


class NonFiniteLossError(UserError, FloatingPointError):
    """The loss or a gradient is not finite; the last good checkpoint is kept."""


class NonFiniteCheck(Callback):
    """Raises at the first check after the step stopped updating the state.

    Args:
      folder: where checkpoints are, for the message.
      learning_rate: step -> learning rate, for the message.
    """

    def __init__(self, folder: Path, learning_rate: Callable[[int], Any]):
        self._folder, self._learning_rate = folder, learning_rate

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        """Raises a NonFiniteLossError that names the step and the exits."""
        halted_at = int(progress.state.halted_at)
        if halted_at < 0:
            return
        # A halted state does not change, so later steps repeat it with other batches. The first
        # metrics that are not finite are those of the step that halted it.
        loss = next((m.loss for m in new if not np.isfinite(m.loss).all()), None)
        if loss is None:
            problem = "the gradient is not finite, although every exit's loss is"
        else:
            exits = ", ".join(str(i + 1) for i in np.flatnonzero(~np.isfinite(loss)))
            values = np.array2string(np.asarray(loss), precision=3)
            problem = f"the loss of exit {exits} is not finite ({values})"
        raise NonFiniteLossError(
            f"{progress.phase} stopped at step {halted_at + 1}: {problem}. Checkpoints of finished "
            f"epochs in {self._folder} are kept; lower {progress.phase}.learning_rate "
            f"(now {float(self._learning_rate(halted_at)):g}) and start in another --workdir"
        )
