"""The loop over epochs, for any phase. It knows neither the loss nor the model's inside."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imta_jax.runtime.preemption import Interrupted, StopRequest, preemption_guard
from imta_jax.runtime.progress_bar import with_progress
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.checkpoints import Checkpoints
from imta_jax.training.feed import Feed
from imta_jax.training.interval import IntervalLines
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.profiling import StepProfiler
from imta_jax.training.progress import MetricsLog, log_epoch
from imta_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Checkpoints within an epoch, by step; those of whole epochs lie beside this folder.
PARTIAL = "partial"
_SAVED = ("loss", "top1")


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
      save_every_steps: within an epoch; 0 for its end only.
      lines: told of every look.
      profiler: told of every step.
      write_errors: what happens when the disk refuses.
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
    save_every_steps: int
    lines: IntervalLines
    profiler: StepProfiler
    write_errors: WriteErrorPolicy

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last epoch, from where the newest checkpoint left off if there is one.

        Raises:
          NonFiniteLossError: names the step and the exits whose loss was not finite.
          Interrupted: the process was told to stop, and all is saved.
        """
        with preemption_guard() as stop:  # outermost: until the last checkpoint is written
            state = self._run(state, stop)
            if stop.should_stop():
                raise Interrupted(f"{self.phase} stopped after its last epoch, saved")
        return state

    def _run(self, state: TrainState, stop: StopRequest) -> TrainState:
        with (
            Checkpoints(self.folder) as checkpoints,
            Checkpoints(self.folder / PARTIAL, keep_best=False) as partial,
            MetricsLog(self.folder, self.phase) as log,
        ):
            state, done = checkpoints.restore_latest(state)
            state, begun = self._restore_partial(partial, state, done)
            log.forget_after(done)
            for epoch in range(done, self.total_epochs):
                start = time.perf_counter()
                state = self._train_epoch(state, epoch, begun, partial, log, stop)
                begun = []
                top1 = self._validate_epoch(state, epoch, log)
                self._save_epoch(checkpoints, partial, state, epoch, top1)
                # The last epoch's pace: the first one also compiled.
                left = (time.perf_counter() - start) * (self.total_epochs - epoch - 1)
                log_epoch(self.phase, epoch + 1, self.total_epochs, top1, left)
        return state

    def _save_epoch(
        self,
        checkpoints: Checkpoints,
        partial: Checkpoints,
        state: TrainState,
        epoch: int,
        top1: list[float],
    ) -> None:
        meta = {**self.meta, "epoch": epoch + 1, "validation_top1": top1}
        self._settle(partial)
        # The last one is what the next step of the run is made of.
        last = epoch + 1 == self.total_epochs
        self._save(checkpoints, epoch + 1, state, meta, float(np.mean(top1)), needed=last)

    def _save(
        self,
        into: Checkpoints,
        name: int,
        state: TrainState,
        meta: Mapping[str, Any],
        top1: float,
        *,
        needed: bool,
    ) -> None:
        """Saves in the background or, what is needed, before it returns."""
        self._settle(into)
        with self.write_errors.writing("a checkpoint", into.folder, required=needed):
            into.save(name, state, meta, top1)
            if needed:
                into.wait()

    def _settle(self, into: Checkpoints) -> None:
        """Waits for what was saved before: its failure must not keep the next from being saved."""
        with self.write_errors.writing("a checkpoint", into.folder):
            into.wait()

    def _restore_partial(
        self, partial: Checkpoints, state: TrainState, done: int
    ) -> tuple[TrainState, list[ExitMetrics]]:
        """The state within the epoch after `done`, if one was saved, and metrics of its steps."""
        # Those of a later epoch, whose own start was lost, would keep this one's from being saved.
        partial.forget_after((done + 1) * self.steps_per_epoch)
        if partial.newest() <= done * self.steps_per_epoch:  # of an epoch that was finished
            return state, []
        found, step = partial.restore_latest(state)
        if not done * self.steps_per_epoch < step <= (done + 1) * self.steps_per_epoch:
            return state, []
        meta = partial.meta(step)
        _log.info("%s: going on at step %d of epoch %d", self.phase, len(meta["loss"]), done + 1)
        rows = zip(meta["loss"], meta["top1"], strict=True)
        return found, [ExitMetrics(*(np.float32(row) for row in pair)) for pair in rows]

    def _train_epoch(
        self,
        state: TrainState,
        epoch: int,
        begun: list[ExitMetrics],
        partial: Checkpoints,
        log: MetricsLog,
        stop: StopRequest,
    ) -> TrainState:
        start, first, collected, pending = time.perf_counter(), len(begun), list(begun), []
        before = epoch * self.steps_per_epoch
        waiting = Waiting(self.feed.items(epoch, first))
        self.lines.begin_epoch()
        for item in self._shown(waiting, epoch, first):
            self.profiler.at(before + len(collected) + _steps(pending), state)
            state, metrics = self.feed.advance(state, item)
            pending.append((metrics, self.feed.steps_of(item)))
            at = len(collected) + _steps(pending)
            told, due = stop.should_stop(), self._save_is_due(at, self.feed.steps_of(item))
            if told or due or at - len(collected) >= self.check_every_steps:
                fetched, pending = self._fetch(state, pending), []
                collected += fetched
                self.lines.add(before + at, fetched, waiting.seconds)
            if told or due:
                self._save_partial(partial, state, before + at, collected, needed=told)
            if told:
                raise Interrupted(f"{self.phase} stopped at step {at} of epoch {epoch + 1}, saved")
        collected += self._fetch(state, pending)
        self.profiler.close(state)
        seconds = time.perf_counter() - start
        step = before + self.steps_per_epoch
        row = {
            **_row(epoch, step, "train", *_mean(collected)),
            "learning_rate": float(self.learning_rate(step - 1)),
            "images_per_second": (len(collected) - first) * self.batch_size / seconds,
            "input_wait_share": waiting.seconds / seconds,
        }
        with self.write_errors.writing("metrics", self.folder):
            log.write(row)
        return state

    def _shown(self, items: Iterable[Any], epoch: int, first: int) -> Iterator[Any]:
        return with_progress(
            items,
            total=self.steps_per_epoch * self.total_epochs,
            done=self.steps_per_epoch * epoch + first,
            description=f"{self.phase} {epoch + 1}/{self.total_epochs}",
            size_of=self.feed.steps_of,
        )

    def _save_is_due(self, at: int, steps: int) -> bool:
        """Whether the last `steps` steps, up to `at`, passed a multiple of `save_every_steps`."""
        every = self.save_every_steps
        # The end of an epoch has a checkpoint of its own.
        return every > 0 and at < self.steps_per_epoch and at // every > (at - steps) // every

    def _save_partial(
        self,
        partial: Checkpoints,
        state: TrainState,
        step: int,
        collected: list[ExitMetrics],
        *,
        needed: bool,
    ) -> None:
        rows = {name: [np.asarray(getattr(m, name)).tolist() for m in collected] for name in _SAVED}
        self._save(partial, step, state, {**self.meta, **rows}, 0.0, needed=needed)

    def _validate_epoch(self, state: TrainState, epoch: int, log: MetricsLog) -> list[float]:
        measured = self.validate(state)
        step = (epoch + 1) * self.steps_per_epoch
        row = _row(epoch, step, "validation", measured["loss"], measured["top1"])
        with self.write_errors.writing("metrics", self.folder):
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


def _steps(pending: Sequence[tuple[ExitMetrics, int]]) -> int:
    return sum(steps for _, steps in pending)


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
