"""Metrics of training steps on the host, and the rows of `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imta_jax.training.objectives import ExitMetrics

# Networks have fewer exits; more are those of several study variants that are trained together.
_MAX_LISTED_EXITS = 16


def fetch_metrics(dispatched: Sequence[tuple[ExitMetrics, int]]) -> list[ExitMetrics]:
    """Waits for dispatched steps and returns their metrics on the host, one entry per step.

    Args:
      dispatched: metrics of each dispatch and its number of steps. A dispatch of several steps has
        arrays [S, E], of which the first steps are valid; a dispatch of one step has arrays [E].
    """
    return [
        ExitMetrics(loss, top1)
        for metrics, steps in jax.device_get(list(dispatched))
        for loss, top1 in zip(*(_per_step(values)[:steps] for values in metrics), strict=True)
    ]


def _per_step(values: np.ndarray) -> np.ndarray:
    """[S, E] from [S, E] or [E]."""
    return values.reshape(-1, values.shape[-1])


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


def training_seconds(rows: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Time in seconds that the training steps of some epochs took.

    Args:
      rows: the rows of `metrics.jsonl` of the training split.
      batch_size: images per step, over all devices.
    """
    # An epoch that was interrupted after its last step has no throughput.
    return sum(
        row["step"] / row["epoch"] * batch_size / row["images_per_second"]
        for row in rows
        if row["images_per_second"]
    )
