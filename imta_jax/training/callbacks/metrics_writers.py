"""Metrics writers: further destinations of the numbers in `metrics.jsonl`.

`config.log.writers` names them: "tensorboard", "wandb", "mlflow", or one of your own:

    @imta_jax.register_metrics_writer("my_writer")
    def make(options, *, run):
        return MyWriter(run.folder)

It has the methods `write(step, scalars)` and `close()`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from imta_jax.config import LogConfig
from imta_jax.errors import InputError
from imta_jax.runtime.agreement import run_in_first_process
from imta_jax.runtime.factories import call_factory
from imta_jax.runtime.optional_packages import require
from imta_jax.runtime.registry import (
    METRICS_WRITERS,
    check_names,
    dotted_path_of,
)
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks.base import Callback, Progress

_FIELD = "config.log.writers"
# Writers whose package is an extra of the same name.
_EXTRAS = ("wandb", "mlflow")


class MetricsWriter(Protocol):
    """A destination of metrics."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the metrics of an epoch on a split.

        Args:
          step: steps of the phase after that epoch. A resumed run may repeat earlier ones.
          scalars: values by SPLIT/METRIC or, for values per exit, SPLIT/METRIC/EXIT, exits from 1.
        """
        ...

    def close(self) -> None:
        """Called at the end of the phase, also after an error."""
        ...


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """The description of a run for metrics writers.

    Attributes:
      phase: "phase_one" or "phase_two".
      folder: the phase's folder, in which a writer may keep files.
      config: the run's config as nested dictionaries.
    """

    phase: str
    folder: Path
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The last two folders: workdir and phase."""
        return "/".join(self.folder.absolute().parts[-2:])


class WriterCallback(Callback):
    """Passes the numbers of each row to a metrics writer; only the first process writes.

    Args:
      name: registered name or dotted path of the writer.
      options: its options.
      run: what it may record.
      write_errors: what happens when it raises an OSError.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        run: LoggedRun,
        write_errors: WriteErrorPolicy,
    ):
        self._name, self._options, self._run = name, options, run
        self._write_errors = write_errors
        self._writer: MetricsWriter | None = None

    def on_train_start(self, progress: Progress) -> None:
        """Makes the writer.

        Raises:
          InputError: it rejects its options, or lacks a method.
        """
        with self._write_errors.writing(f"metrics for {self._name}", self._run.folder):
            run_in_first_process(self._make_writer)

    def _make_writer(self) -> None:
        if self._writer is None:
            self._writer = _new_writer(self._name, self._options, self._run)

    def on_metrics(self, progress: Progress, row: Mapping[str, Any]) -> None:
        """Writes the row's numbers."""
        with self._write_errors.writing(f"metrics for {self._name}", self._run.folder):
            run_in_first_process(lambda: self._write(row))

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(int(row["step"]), dict(scalars_of(row)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def writer_callbacks(
    log: LogConfig, run: LoggedRun, write_errors: WriteErrorPolicy
) -> list[WriterCallback]:
    """The callbacks of `config.log.writers`."""
    return [
        WriterCallback(name, log.writer_options.get(_key(name), {}), run, write_errors)
        for name in log.writers
    ]


def check_writers(log: LogConfig) -> None:
    """Checks that all writers can be made; makes none.

    Raises:
      InputError: an unknown name, a name that is given twice, or options of no writer.
      MissingPackageError: the package of a writer is not installed.
    """
    for name in log.writers:
        METRICS_WRITERS.get(name, _FIELD)
        if log.writers.count(name) > 1:
            raise InputError(f"{_FIELD} must be different names; found {log.writers}")
        if name in _EXTRAS and METRICS_WRITERS.is_built_in(name):
            require(name, f"{_FIELD} {name!r}")
    names = [_key(name) for name in log.writers]
    check_names(log.writer_options, names, "writer in config.log.writer_options")
    for name, options in log.writer_options.items():
        if not isinstance(options, Mapping):
            raise InputError(
                f"config.log.writer_options.{name} must be a mapping of options; found {options!r}"
            )


def scalars_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of a row's numbers."""
    for name, value in row.items():
        if isinstance(value, float):
            yield f"{row['split']}/{name}", value
        elif isinstance(value, list):
            for i, entry in enumerate(value, start=1):
                yield f"{row['split']}/{name}/{i}", entry


def _key(name: str) -> str:
    """The name of a writer's options; for a dotted path, the part after the colon."""
    return name.rpartition(":")[2]


def _new_writer(name: str, options: Mapping[str, Any], run: LoggedRun) -> MetricsWriter:
    factory, field = METRICS_WRITERS.get(name, _FIELD), f"{_FIELD} {name!r}"
    options_field = f"config.log.writer_options.{_key(name)}"
    writer = call_factory(factory, options, field, options_field, run=run)
    for method in ("write", "close"):
        if not callable(getattr(writer, method, None)):
            raise InputError(
                f"{field}: {dotted_path_of(factory)} must return a writer with the methods "
                f"write(step, scalars) and close(); found {writer!r:.80} without {method}"
            )
    return writer
