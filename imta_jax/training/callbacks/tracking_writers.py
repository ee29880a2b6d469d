"""Metrics writers for Weights & Biases and MLflow, which are optional packages.

A resumed phase continues the same run of the tracking service: the phase's folder holds its id.
"""

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.runtime.config_fields import flat_fields
from imta_jax.runtime.files import read_file, write_atomically
from imta_jax.runtime.optional_packages import explained
from imta_jax.runtime.registry import check_names, register_metrics_writer
from imta_jax.training.callbacks.metrics_writers import LoggedRun

_PROJECT = "imta_jax"
_MLFLOW_OPTIONS = ("tracking_uri", "experiment", "run_name")
_MAX_PARAMETER_LENGTH = 500  # The limit of MLflow.


@register_metrics_writer("wandb")
def make_wandb_writer(options: Any, *, run: LoggedRun) -> "WandbWriter":
    """A writer to Weights & Biases; options are arguments of `wandb.init`, such as `project`."""
    wandb = _imported("wandb")
    path = run.folder / "wandb_run_id"
    run_id = _stored(path) or uuid.uuid4().hex
    settings = {
        "project": _PROJECT,
        "name": run.name,
        "group": run.folder.absolute().parent.name,
        "job_type": run.phase,
        "dir": str(run.folder),
        "config": dict(run.config),
        "id": run_id,
        "resume": "allow",
        **options.to_dict(),
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    started = wandb.init(**settings)
    write_atomically(path, settings["id"])
    return WandbWriter(started)


class WandbWriter:
    """Logs to a run of Weights & Biases.

    Args:
      run: return value of `wandb.init`.
    """

    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


@register_metrics_writer("mlflow")
def make_mlflow_writer(options: Any, *, run: LoggedRun) -> "MlflowWriter":
    """A writer to MLflow; options are `tracking_uri`, `experiment` and `run_name`."""
    mlflow = _imported("mlflow")
    check_names(options, _MLFLOW_OPTIONS, "option in config.log.writer_options.mlflow")
    arguments = {"experiment": _PROJECT, "run_name": run.name, **options.to_dict()}
    uri, experiment = arguments.pop("tracking_uri", None), arguments.pop("experiment")
    if uri is not None:
        mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    path = run.folder / "mlflow_run_id"
    stored = _stored(path)
    started = mlflow.start_run(run_id=stored, **arguments)
    if not stored:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, started.info.run_id)
        parameters = flat_fields(run.config)
        mlflow.log_params({name: str(value)[:_MAX_PARAMETER_LENGTH] for name, value in parameters})
    return MlflowWriter(mlflow)


class MlflowWriter:
    """Logs to the active run of MLflow.

    Args:
      mlflow: the module, after `start_run`.
    """

    def __init__(self, mlflow: Any):
        self._mlflow = mlflow

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars."""
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._mlflow.end_run()


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise explained(error, f"config.log.writers {name!r}") or error from error


def _stored(path: Path) -> str | None:
    return read_file(path).decode().strip() or None if path.exists() else None
