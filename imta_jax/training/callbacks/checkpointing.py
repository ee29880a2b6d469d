"""Saves checkpoints after epochs and within them, and resumes from the newest one."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.early_stopping import EARLY_STOPPING, EarlyStopping
from imta_jax.training.example_logits import ExampleLogits
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.recipe import RECIPE

_log = logging.getLogger(__name__)

# Folder of the checkpoints within epochs, named by step, in the folder of the epochs' checkpoints.
PARTIAL = "partial"


class CheckpointCallback(Callback):
    """Saves the training state; within an epoch also its metrics, which a resumed run needs.

    Args:
      folder: the phase's folder.
      meta: JSON values that every checkpoint contains.
      every_steps: steps between checkpoints within an epoch; 0 saves after epochs only.
      write_errors: what happens when a checkpoint cannot be written.
      example_logits: state -> entries of `meta`, which a resumed state must give again, or
        None.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, Any],
        every_steps: int,
        write_errors: WriteErrorPolicy,
        example_logits: ExampleLogits | None = None,
    ):
        self._meta, self._every_steps, self._write_errors = meta, every_steps, write_errors
        self._example_logits = example_logits
        self._epochs = CheckpointStore(folder)
        self._partial = CheckpointStore(folder / PARTIAL, keep_best=False)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Opens the folders."""
        self._stack.enter_context(self._epochs)
        self._stack.enter_context(self._partial)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until checkpoints are written."""
        self._stack.__exit__(kind, error, trace)

    def on_train_start(self, progress: Progress) -> None:
        """Resumes from the newest checkpoint that can be read, if there is one."""
        recipe = self._meta.get(RECIPE)
        progress.state, progress.epoch = self._epochs.restore_latest(progress.state, recipe)
        self._check_example_logits(progress)
        self._restore_early_stopping(progress)
        first, steps = progress.epoch * progress.steps_per_epoch, progress.steps_per_epoch
        # Orbax would not save checkpoints of this epoch while later ones exist.
        self._partial.delete_after(first + steps)
        if self._partial.newest() <= first:
            return
        state, step = self._partial.restore_latest(progress.state, recipe)
        if not first < step <= first + steps:
            return
        meta = self._partial.meta(step)
        rows = zip(meta["loss"], meta["top1"], strict=True)
        progress.state = state
        progress.metrics = [
            ExitMetrics(*(np.asarray(values, np.float32) for values in row)) for row in rows
        ]
        _log.info("%s: resuming at %s", progress.phase, progress.position)

    def _check_example_logits(self, progress: Progress) -> None:
        """Checks that the code computes the network that was trained."""
        if progress.epoch and self._example_logits is not None:
            name = f"checkpoint {progress.epoch} in {self._epochs.folder}"
            self._example_logits.check(progress.state, self._epochs.meta(progress.epoch), name)

    def _restore_early_stopping(self, progress: Progress) -> None:
        """Restores the best epoch so far, if the checkpoint records it."""
        if progress.epoch and progress.early_stopping.patience_epochs:
            recorded = self._epochs.meta(progress.epoch).get(EARLY_STOPPING)
            if recorded:
                progress.early_stopping = EarlyStopping(**recorded)

    def needs_check(self, progress: Progress) -> bool:
        """Whether the last dispatch passed a multiple of `every_steps` within the epoch."""
        interval, step = self._every_steps, progress.step_in_epoch
        # The epoch's end has its own checkpoint.
        if not interval or step >= progress.steps_per_epoch:
            return False
        return step // interval > (step - progress.last_dispatch_steps) // interval

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        """Saves within the epoch if that is due or training stops."""
        if not progress.stopping and not self.needs_check(progress):
            return
        rows = {
            name: [np.asarray(getattr(m, name)).tolist() for m in progress.metrics]
            for name in ExitMetrics._fields
        }
        meta = {**self._meta, **rows}
        self._save(self._partial, progress.step, progress, meta, 0.0, required=progress.stopping)

    def on_epoch_end(self, progress: Progress) -> None:
        """Saves after the epoch. The last checkpoint is required: the next phase starts from it."""
        epoch, top1 = progress.epoch + 1, progress.validation_top1
        meta = {**self._meta, "epoch": epoch, "validation_top1": top1}
        if self._example_logits is not None:
            meta |= self._example_logits.record(progress.state)
        if progress.early_stopping.patience_epochs:
            meta[EARLY_STOPPING] = dataclasses.asdict(progress.early_stopping)
        required = epoch == progress.total_epochs or progress.early_stopping.stopped
        self._save(self._epochs, epoch, progress, meta, float(np.mean(top1)), required=required)

    def _save(
        self,
        store: CheckpointStore,
        name: int,
        progress: Progress,
        meta: Mapping[str, Any],
        top1: float,
        *,
        required: bool,
    ) -> None:
        """Saves in the background. A required checkpoint is written before this returns.

        Only one save runs at a time: with several processes, the steps of two saves could be
        reached in different orders.
        """
        self._wait(self._epochs)
        self._wait(self._partial)
        with self._write_errors.writing("a checkpoint", store.folder, required=required):
            store.save(name, progress.state, meta, top1)
            if required:
                store.wait()

    def _wait(self, store: CheckpointStore) -> None:
        """Waits for the last save, whose error must not prevent the next one."""
        with self._write_errors.writing("a checkpoint", store.folder):
            store.wait()
