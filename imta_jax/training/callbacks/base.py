"""The base class of callbacks, and the progress that the training loop passes to them."""

import contextlib
import dataclasses
from types import TracebackType
from typing import Any, Self

from imta_jax.training.early_stopping import EarlyStopping
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.state import TrainState


@dataclasses.dataclass
class Progress:
    """Progress of the training of a phase. The loop updates it, and callbacks read it.

    Attributes:
      phase: "phase_one" or "phase_two".
      total_epochs: number of epochs.
      steps_per_epoch: training steps per epoch.
      batch_size: images per step, over all devices.
      state: the current state, on the devices.
      epoch: the current epoch, from 0; a resumed run starts at a later one.
      metrics: metrics of the epoch's steps so far that are on the host, also from before a resume.
      steps_in_flight: steps that were dispatched since the last check, and whose metrics are not on
        the host.
      last_dispatch_steps: steps of the last dispatch.
      input_wait_seconds: time spent waiting for input in this epoch.
      stopping: whether a preemption was requested; the loop raises after the next check.
      validation_top1: top-1 accuracy per exit after the last epoch, in percent.
      early_stopping: the best epoch so far, and whether the phase ended early.
    """

    phase: str
    total_epochs: int
    steps_per_epoch: int
    batch_size: int
    state: TrainState
    epoch: int = 0
    metrics: list[ExitMetrics] = dataclasses.field(default_factory=list)
    steps_in_flight: int = 0
    last_dispatch_steps: int = 0
    input_wait_seconds: float = 0.0
    stopping: bool = False
    validation_top1: list[float] = dataclasses.field(default_factory=list)
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs were trained, or the phase ended early."""
        return self.epoch >= self.total_epochs or self.early_stopping.stopped

    @property
    def step_in_epoch(self) -> int:
        """Steps of the current epoch that were dispatched."""
        return len(self.metrics) + self.steps_in_flight

    @property
    def position(self) -> str:
        """The current step and epoch, for messages."""
        return f"step {self.step_in_epoch} of epoch {self.epoch + 1}"

    @property
    def step(self) -> int:
        """Steps of the phase that were dispatched."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the phase."""
        return self.total_epochs * self.steps_per_epoch


class Callback(contextlib.AbstractContextManager):
    """Base class of callbacks; the methods do nothing. The loop enters each as a context manager.

    Methods are called in the order of the loop's list. Only `on_check` and the methods called at
    the start or end of an epoch may wait for the devices.
    """

    def __enter__(self) -> Self:
        """Acquires what the callback needs."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases it, also after an error."""

    def on_train_start(self, progress: Progress) -> None:
        """Before the first epoch; may replace `state`, `epoch` and `metrics` to resume."""

    def on_epoch_start(self, progress: Progress) -> None:
        """Before the first step of an epoch, or the first after a resume."""

    def on_step_start(self, progress: Progress) -> None:
        """Before a dispatch of one or several steps."""

    def on_step_end(self, progress: Progress) -> None:
        """After a dispatch, without waiting for it."""

    def needs_check(self, progress: Progress) -> bool:
        """Whether the loop has to check now, and not only every `check_every_steps` steps."""
        return False

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        """After the host fetched the metrics of the steps since the last check.

        Args:
          progress: its `metrics` include the new ones.
          new: metrics of the new steps.
        """

    def on_metrics(self, progress: Progress, row: dict[str, Any]) -> None:
        """With the metrics of an epoch on a split; see `metrics.epoch_row`. May add entries."""

    def on_epoch_end(self, progress: Progress) -> None:
        """After an epoch was trained and validated."""
