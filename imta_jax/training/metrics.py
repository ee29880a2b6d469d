"""The rows of `metrics.jsonl`: metrics of an epoch on the training or validation images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from imta_jax.training.objectives import ExitMetrics

# Networks have fewer exits; more are those of several study variants that are trained together.
_MAX_LISTED_EXITS = 16


def mean_metrics(metrics: Sequence[ExitMetrics]) -> ExitMetrics:
    """Means over steps of the loss and the top-1 accuracy per exit, [E] each."""
    return ExitMetrics(
        np.mean([m.loss for m in metrics], axis=0), np.mean([m.top1 for m in metrics], axis=0)
    )


def epoch_row(epoch: int, step: int, split: str, metrics: ExitMetrics) -> dict[str, Any]:
    """A row of an epoch.

    Args:
      epoch: the epoch, from 0; rows count from 1.
      step: steps of the phase after that epoch.
      split: "train" or "validation".
      metrics: means per exit.
    """
    return {
        "epoch": epoch + 1,
        "step": step,
        "split": split,
        "loss": float(np.sum(metrics.loss)),
        "loss_per_exit": [float(value) for value in metrics.loss],
        "top1_per_exit": [float(value) for value in metrics.top1],
    }


def format_per_exit(values: Sequence[float], digits: int) -> str:
    """Formats values per exit for log lines; the range if there are many exits."""
    if len(values) <= _MAX_LISTED_EXITS:
        return "per exit " + " ".join(f"{value:.{digits}f}" for value in values)
    return f"of {len(values)} exits {min(values):.{digits}f} to {max(values):.{digits}f}"
