"""The loop over epochs, for any phase. It knows neither the loss nor the model's inside."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imta_jax.progress_bar import with_progress
from imta_jax.training.checkpoints import Checkpoints
from imta_jax.training.feed import Feed
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.progress import MetricsLog, log_epoch
from imta_jax.training.state import TrainState


class Waiting:
    """Passes items on and adds up how long, in seconds, it waited for them."""

    def __init__(self, items: Iterable[Any]):
        self._items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Any]:
        """The items."""
        items = iter(self._items)
        while True:
            start = time.perf_counter()
            item = next(items, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


class NonFiniteLossError(FloatingPointError):
    """The loss stopped being a number; the last good checkpoint stays."""


@dataclasses.dataclass(frozen=True)
class EpochLoop:
    """What a phase hands the loop.

    Attributes:
      phase: its name, in logs and rows.
      folder: of the phase; checkpoints and metrics go there.
      total_epochs, steps_per_epoch, batch_size: how long and how large.
      feed: where the images come from, and the step.
      validate: state -> {"loss": [E], "top1": [E]}.
      learning_rate: step -> learning rate.
      meta: goes into every checkpoint.
      check_every_steps: the host looks at the losses this often; between two looks it never waits.
    """

    phase: str
    folder: Path
    total_epochs: int
    steps_per_epoch: int
    batch_size: int
    feed: Feed
    validate: Callable[[TrainState], Mapping[str, np.ndarray]]
    learning_rate: Callable[[int], float]
    meta: Mapping[str, Any]
    check_every_steps: int

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last epoch, from the newest checkpoint if there is one.

        Raises:
          NonFiniteLossError: names the step and the exits whose loss was not finite.
        """
        with Checkpoints(self.folder) as checkpoints, MetricsLog(self.folder, self.phase) as log:
            state, done = checkpoints.restore_latest(state)
            log.forget_after(done)
            for epoch in range(done, self.total_epochs):
                start = time.perf_counter()
                state = self._train_epoch(state, epoch, log)
                top1 = self._validate_epoch(state, epoch, log)
                meta = {**self.meta, "epoch": epoch + 1, "validation_top1": top1}
                checkpoints.save(epoch + 1, state, meta, float(np.mean(top1)))
                # The last epoch's pace: the first one also compiled.
                left = (time.perf_counter() - start) * (self.total_epochs - epoch - 1)
                log_epoch(self.phase, epoch + 1, self.total_epochs, top1, left)
        return state

    def _train_epoch(self, state: TrainState, epoch: int, log: MetricsLog) -> TrainState:
        start, collected, pending = time.perf_counter(), [], []
        waiting = Waiting(self.feed.items(epoch))
        items = with_progress(
            waiting,
            total=self.steps_per_epoch * self.total_epochs,
            done=self.steps_per_epoch * epoch,
            description=f"{self.phase} {epoch + 1}/{self.total_epochs}",
            size_of=self.feed.steps_of,
        )
        for item in items:
            state, metrics = self.feed.advance(state, item)
            pending.append((metrics, self.feed.steps_of(item)))
            if sum(steps for _, steps in pending) >= self.check_every_steps:
                collected += self._fetch(state, pending)
                pending = []
        collected += self._fetch(state, pending)
        seconds = time.perf_counter() - start
        step = (epoch + 1) * self.steps_per_epoch
        log.write(
            {
                **_row(epoch, step, "train", *_mean(collected)),
                "learning_rate": float(self.learning_rate(step - 1)),
                "images_per_second": self.steps_per_epoch * self.batch_size / seconds,
                "input_wait_share": waiting.seconds / seconds,
            }
        )
        return state

    def _validate_epoch(self, state: TrainState, epoch: int, log: MetricsLog) -> list[float]:
        measured = self.validate(state)
        step = (epoch + 1) * self.steps_per_epoch
        row = _row(epoch, step, "validation", measured["loss"], measured["top1"])
        log.write(row)
        return row["top1_per_exit"]

    def _fetch(
        self, state: TrainState, pending: Sequence[tuple[ExitMetrics, int]]
    ) -> list[ExitMetrics]:
        """Brings metrics to the host, one for each step, and stops a training that has halted."""
        fetched = [
            ExitMetrics(loss, top1)
            for metrics, steps in jax.device_get(list(pending))
            for loss, top1 in zip(*(_per_step(values)[:steps] for values in metrics), strict=True)
        ]
        halted_at = int(state.halted_at)
        if halted_at >= 0:
            raise NonFiniteLossError(self._explain(halted_at, fetched))
        return fetched

    def _explain(self, halted_at: int, fetched: Sequence[ExitMetrics]) -> str:
        # A halted state stands still, so every later row repeats its step on another batch; the
        # first row that is not finite is the one that halted it.
        bad = next((m.loss for m in fetched if not np.isfinite(m.loss).all()), None)
        if bad is None:
            what = "the gradient is not finite, though every exit's loss is"
        else:
            exits = ", ".join(str(i + 1) for i in np.flatnonzero(~np.isfinite(bad)))
            what = f"the loss of exit {exits} is not finite ({np.array2string(bad, precision=3)})"
        return (
            f"{self.phase} stopped at step {halted_at + 1}: {what}. Checkpoints of finished "
            f"epochs in {self.folder} are kept; lower {self.phase}.learning_rate "
            f"(now {float(self.learning_rate(halted_at)):g}) and start in another --workdir"
        )


def _per_step(values: np.ndarray) -> np.ndarray:
    """[S, E] of what is [S, E] or, of one step, [E]."""
    return values.reshape(-1, values.shape[-1])


def _mean(collected: Sequence[ExitMetrics]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over steps of the loss and top-1 per exit, [E] each."""
    return (
        np.mean([m.loss for m in collected], axis=0),
        np.mean([m.top1 for m in collected], axis=0),
    )


def _row(epoch: int, step: int, split: str, loss: np.ndarray, top1: np.ndarray) -> dict[str, Any]:
    return {
        "epoch": epoch + 1,
        "step": step,
        "split": split,
        "loss": float(np.sum(loss)),
        "loss_per_exit": [float(value) for value in loss],
        "top1_per_exit": [float(value) for value in top1],
    }
