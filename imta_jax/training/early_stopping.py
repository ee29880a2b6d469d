"""Early stopping: a phase ends when its validation accuracy no longer improves.

The accuracy is the mean over exits of the top-1 accuracy, by which the best checkpoint is chosen
too. Checkpoints record the best epoch so far, so that a resumed phase stops at the same epoch.
"""

import dataclasses
import math

# The entry of a checkpoint's `meta`.
EARLY_STOPPING = "early_stopping"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The best epoch so far, and whether the phase ended early.

    Attributes:
      patience_epochs: epochs without a better accuracy after which the phase ends; 0 for never.
      best_epoch: epoch with the best accuracy, from 1; 0 before the first.
      best_top1: validation accuracy of that epoch, percent.
      stopped: whether the phase ended before its last epoch.
    """

    patience_epochs: int = 0
    best_epoch: int = 0
    best_top1: float = -math.inf
    stopped: bool = False

    def after(self, epoch: int, top1: float, total_epochs: int) -> "EarlyStopping":
        """The record after an epoch, from 1, with this accuracy in percent."""
        best = (epoch, top1) if top1 > self.best_top1 else (self.best_epoch, self.best_top1)
        is_over = 0 < self.patience_epochs <= epoch - best[0] and epoch < total_epochs
        return dataclasses.replace(self, best_epoch=best[0], best_top1=best[1], stopped=is_over)
