"""Ends a phase early; see `training.early_stopping`."""

import logging
from typing import Any

import numpy as np

from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.early_stopping import EarlyStopping

_log = logging.getLogger(__name__)


class EarlyStoppingCallback(Callback):
    """Updates `progress.early_stopping` after each validation and adds it to the row.

    It precedes the callbacks that save and restore it and those that write rows.

    Args:
      patience_epochs: epochs without a better accuracy after which the phase ends, at least 1.
    """

    def __init__(self, patience_epochs: int):
        self._patience_epochs = patience_epochs

    def on_train_start(self, progress: Progress) -> None:
        """Starts without a best epoch."""
        progress.early_stopping = EarlyStopping(patience_epochs=self._patience_epochs)

    def on_metrics(self, progress: Progress, row: dict[str, Any]) -> None:
        """Compares a validation with the best one so far."""
        if row["split"] != "validation":
            return
        top1 = float(np.mean(progress.validation_top1))
        early = progress.early_stopping.after(progress.epoch + 1, top1, progress.total_epochs)
        progress.early_stopping = early
        row.update(best_epoch=early.best_epoch, stopped_early=early.stopped)

    def on_epoch_end(self, progress: Progress) -> None:
        """Logs why the phase ends here."""
        early = progress.early_stopping
        if early.stopped:
            _log.info(
                "%s stops early after epoch %d of %d: no better validation top-1 for %d epochs than"
                " %.2f (mean over exits) in epoch %d",
                progress.phase,
                progress.epoch + 1,
                progress.total_epochs,
                early.patience_epochs,
                early.best_top1,
                early.best_epoch,
            )
