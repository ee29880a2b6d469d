"""The training loop over epochs, for any phase. Independent of loss and network."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from imta_jax.runtime.preemption import Interrupted, StopRequest, preemption_guard
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.feed import Feed, TimedIterator
from imta_jax.training.metrics import epoch_row, fetch_metrics, mean_metrics
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.state import TrainState
from imta_jax.training.validation import Validate


@dataclasses.dataclass(frozen=True)
class TrainingLoop:
    """Trains a phase and calls the callbacks.

    Attributes:
      phase: "phase_one" or "phase_two", for logs and rows.
      total_epochs: number of epochs.
      steps_per_epoch: training steps per epoch.
      batch_size: images per step, over all devices.
      feed: the input and the compiled step.
      validate: state -> metrics on the validation images.
      learning_rate: step -> learning rate.
      check_every_steps: steps between checks, in which the host waits for the devices and fetches
        metrics. It does not wait between two checks.
      callbacks: called in this order.
    """

    phase: str
    total_epochs: int
    steps_per_epoch: int
    batch_size: int
    feed: Feed
    validate: Validate
    learning_rate: Callable[[int], Any]
    check_every_steps: int
    callbacks: Sequence[Callback]

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last epoch, from the step that a callback restored; returns the last state.

        Raises:
          NonFiniteLossError: the loss or a gradient is not finite.
          Interrupted: training was preempted and is saved.
        """
        sizes = (self.total_epochs, self.steps_per_epoch, self.batch_size)
        progress = Progress(self.phase, *sizes, state)
        # The guard is outermost, so that the last checkpoint is written before the process stops.
        with preemption_guard() as stop:
            with contextlib.ExitStack() as stack:
                for callback in self.callbacks:
                    stack.enter_context(callback)
                for callback in self.callbacks:
                    callback.on_train_start(progress)
                while not progress.is_finished:
                    self._train_epoch(progress, stop)
                    self._validate_epoch(progress)
                    for callback in self.callbacks:
                        callback.on_epoch_end(progress)
                    progress.epoch, progress.metrics = progress.epoch + 1, []
            if stop.should_stop():
                raise Interrupted(f"{self.phase} stopped after its last epoch, saved")
        return progress.state

    def _train_epoch(self, progress: Progress, stop: StopRequest) -> None:
        start, first, in_flight = time.perf_counter(), len(progress.metrics), []
        items = TimedIterator(self.feed.items(progress.epoch, first))
        for callback in self.callbacks:
            callback.on_epoch_start(progress)
        for item in items:
            progress.input_wait_seconds = items.seconds
            for callback in self.callbacks:
                callback.on_step_start(progress)
            progress.state, metrics = self.feed.advance(progress.state, item)
            progress.last_dispatch_steps = self.feed.steps_of(item)
            progress.steps_in_flight += progress.last_dispatch_steps
            in_flight.append((metrics, progress.last_dispatch_steps))
            for callback in self.callbacks:
                callback.on_step_end(progress)
            progress.stopping = stop.should_stop()
            is_due = progress.stopping or progress.steps_in_flight >= self.check_every_steps
            if is_due or any(callback.needs_check(progress) for callback in self.callbacks):
                self._check(progress, in_flight)
            if progress.stopping:
                raise Interrupted(f"{self.phase} stopped at {progress.position}, saved")
        self._check(progress, in_flight)
        seconds, steps = time.perf_counter() - start, len(progress.metrics) - first
        row = epoch_row(progress.epoch, progress.step, "train", mean_metrics(progress.metrics))
        row["learning_rate"] = float(self.learning_rate(progress.step - 1))
        row["images_per_second"] = steps * self.batch_size / seconds
        row["input_wait_share"] = items.seconds / seconds
        for callback in self.callbacks:
            callback.on_metrics(progress, row)

    def _check(self, progress: Progress, in_flight: list[tuple[ExitMetrics, int]]) -> None:
        """Fetches the metrics of the steps in flight, one by one, and empties the list."""
        if in_flight:
            new = fetch_metrics(in_flight)
            in_flight.clear()
            progress.metrics += new
            progress.steps_in_flight = 0
            for callback in self.callbacks:
                callback.on_check(progress, new)

    def _validate_epoch(self, progress: Progress) -> None:
        row = epoch_row(progress.epoch, progress.step, "validation", self.validate(progress.state))
        progress.validation_top1 = row["top1_per_exit"]
        for callback in self.callbacks:
            callback.on_metrics(progress, row)
