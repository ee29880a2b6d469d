"""Callbacks of the training loop: checkpoints, metrics, progress, profiler and loss check."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imta_jax.config import CheckpointConfig, LogConfig
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress
from imta_jax.training.callbacks.checkpointing import CheckpointCallback
from imta_jax.training.callbacks.early_stopping import EarlyStoppingCallback
from imta_jax.training.callbacks.jsonl import JsonlWriter
from imta_jax.training.callbacks.metrics_writers import (
    LoggedRun,
    MetricsWriter,
    WriterCallback,
    check_writers,
    writer_callbacks,
)
from imta_jax.training.callbacks.non_finite import NonFiniteCheck, NonFiniteLossError
from imta_jax.training.callbacks.profiler import StepProfiler
from imta_jax.training.callbacks.progress import (
    CompilationLines,
    EpochLine,
    IntervalLines,
    ProgressBar,
)
from imta_jax.training.callbacks.tensorboard import TensorBoardWriter
from imta_jax.training.callbacks.tracking_writers import MlflowWriter, WandbWriter
from imta_jax.training.example_logits import ExampleLogits

__all__ = [
    "Callback",
    "CheckpointCallback",
    "CompilationLines",
    "EarlyStoppingCallback",
    "EpochLine",
    "IntervalLines",
    "JsonlWriter",
    "LoggedRun",
    "MetricsWriter",
    "MlflowWriter",
    "NonFiniteCheck",
    "NonFiniteLossError",
    "Progress",
    "ProgressBar",
    "StepProfiler",
    "TensorBoardWriter",
    "WandbWriter",
    "WriterCallback",
    "check_writers",
    "default_callbacks",
]


def default_callbacks(
    folder: Path,
    *,
    meta: Mapping[str, Any],
    log: LogConfig,
    checkpoint: CheckpointConfig,
    learning_rate: Callable[[int], Any],
    run: LoggedRun | None = None,
    example_logits: ExampleLogits | None = None,
    patience_epochs: int = 0,
) -> list[Callback]:
    """The callbacks of a phase, in the order in which the loop calls them.

    Args:
      folder: the phase's folder.
      meta: JSON that every checkpoint contains.
      log: `config.log`.
      checkpoint: `config.checkpoint`.
      learning_rate: step -> learning rate.
      run: what metrics writers record; None for the folder alone.
      example_logits: see `CheckpointCallback`.
      patience_epochs: see `EarlyStoppingCallback`; 0 trains all epochs.
    """
    run = run or LoggedRun("", folder)
    write_errors = WriteErrorPolicy(checkpoint.on_write_error)
    early_stopping = [EarlyStoppingCallback(patience_epochs)] if patience_epochs else []
    return [
        *early_stopping,
        NonFiniteCheck(folder, learning_rate),  # Before checkpoints are saved.
        StepProfiler(folder, log.profile_steps),
        CheckpointCallback(folder, meta, checkpoint.every_steps, write_errors, example_logits),
        JsonlWriter(folder, write_errors),  # After the checkpoint callback, which sets the epoch.
        *writer_callbacks(log, run, write_errors),
        ProgressBar(),
        CompilationLines(),
        IntervalLines(log.line_every_seconds),
        EpochLine(),  # Last: its time includes saving.
    ]
