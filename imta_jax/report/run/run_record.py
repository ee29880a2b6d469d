"""Reads a run's folder into one frozen record for the report.

Only files that `launch.py` writes are read. Nothing here needs the network, so a report can be
drawn from a copied folder. Accuracies and calibration errors are percentages. Costs are cumulative
multiply-adds per image. Exits count from 1 in `results.json` and from 0 in arrays.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from imta_jax.config import PHASES
from imta_jax.errors import InputError, MissingFileError
from imta_jax.evaluation.results import missing_sections, read_results
from imta_jax.report.fonts import drawable_name
from imta_jax.runtime.files import check_regular_file
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.runtime.metric_rows import read_metric_rows
from imta_jax.runtime.paths import local_path

_log = logging.getLogger(__name__)

Content = TypeVar("Content")


@dataclass(frozen=True, repr=False)
class RunRecord:
    """The content of a run's folder.

    Attributes:
      workdir: the run's folder.
      config: `config.json`, nested; empty without the file.
      dataset: name, class names, image shape, examples per split and statistics.
      phases: epochs, steps and time of each phase by name; phases that were not run are omitted.
      environment: device, versions, seed and time of completion.
      exits: one row per exit, by rising cost: `exit` (from 1), `macs`, `published_ops`, `params`,
        `top1`, `top5`, `ece` and, except in older results, `auroc`.
      budget_curve: one row per budget, by rising `mean_macs`: also `quota`, `thresholds`,
        `validation_top1`, `top1`, `exit_fractions`.
      reported_budgets: rows of the budget curve for tables, by rising `budget` (a fraction of the
        last exit's multiply-adds); may be empty.
      threshold_methods: comparison of methods of choosing thresholds: `points` (see
        `evaluation.comparison_rows`) and the settings of their intervals; None in older results.
      metrics: one row per phase, split and epoch; None without any.
      samples: one row per test image with its exit at each reported budget; None without the file
        or without reported budgets.
      gallery: arrays of easy and hard images, or None.
      calibration: `confidence`, `accuracy`, `count`, each [E, bins], or None.
      time: measured milliseconds per exit and budget (`inference.timing`), or None.
    """

    workdir: Path
    config: dict[str, Any]
    dataset: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    exits: pd.DataFrame
    budget_curve: pd.DataFrame
    reported_budgets: pd.DataFrame
    threshold_methods: dict[str, Any] | None = None
    metrics: pd.DataFrame | None = None
    samples: pd.DataFrame | None = None
    gallery: dict[str, np.ndarray] | None = None
    calibration: dict[str, np.ndarray] | None = None
    time: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"RunRecord({str(self.workdir)!r}: {self.dataset['name']}, {self.num_exits} exits)"

    @property
    def num_exits(self) -> int:
        """Number of exits, E."""
        return len(self.exits)

    @property
    def full_macs(self) -> float:
        """Multiply-adds of the last exit."""
        return float(self.exits["macs"].iloc[-1])

    @property
    def full_top1(self) -> float:
        """Test top-1 of the last exit in percent."""
        return float(self.exits["top1"].iloc[-1])

    def require(self, attribute: str, file: str) -> Any:
        """The value of an optional attribute.

        Args:
          attribute: name of the attribute.
          file: file or section that it is read from, for the error message.

        Raises:
          ValueError: it is None.
        """
        value = getattr(self, attribute)
        if value is None:
            raise InputError(f"{self.workdir} has no {file}; evaluate the run again")
        return value

    def class_name(self, label: int) -> str:
        """The name of a class for figures, or its number if it has none that can be drawn."""
        names = self.dataset.get("class_names") or []
        return drawable_name(str(names[label]), label) if 0 <= label < len(names) else str(label)


def load_run(workdir: str | Path) -> RunRecord:
    """Reads a run's folder.

    Args:
      workdir: the folder given to `launch.py --workdir`.

    Returns:
      The record. Attributes without a file are None or empty, see `RunRecord`.

    Raises:
      FileNotFoundError: `results.json` does not exist. The message has the command that writes it.
      ValueError: `results.json` is damaged or incomplete.
    """
    workdir = local_path("workdir", workdir)
    evaluation = workdir / "evaluation"
    return run_record(
        _read_results(workdir),
        workdir=workdir,
        config=read_json_or_none(workdir / "config.json", "the report shows no config"),
        metrics=read_metrics(workdir),
        samples=_read_samples(evaluation / "samples.parquet"),
        gallery=_read_arrays(evaluation / "gallery.npz"),
        calibration=_read_arrays(evaluation / "calibration.npz"),
        time=read_json_or_none(evaluation / "time.json", "write it again with --mode=time"),
    )


def run_record(
    results: Mapping[str, Any],
    *,
    workdir: str | Path = ".",
    config: Mapping[str, Any] | None = None,
    **optional: Any,
) -> RunRecord:
    """Makes a record from results in memory, for figures and tables in a notebook.

    Args:
      results: content of a `results.json`, for example of `imta_jax.pretrained.load_pretrained`.
        Sections can be replaced: `results | {"threshold_methods": comparison_record(...)}`.
      workdir: the run's folder, for error messages.
      config: content of `config.json`.
      **optional: the attributes of `RunRecord` that may be None, for example `gallery`.

    Returns:
      The record.

    Raises:
      ValueError: a section of `results` is missing.
    """
    if missing := missing_sections(results):
        raise InputError(f"results is incomplete: missing {', '.join(missing)}")
    return RunRecord(
        workdir=Path(workdir),
        config=dict(config or {}),
        dataset=results["dataset"],
        phases={name: phase for name, phase in results["phases"].items() if phase},
        environment=results["environment"],
        exits=_frame(results["exits"], by="macs"),
        budget_curve=_frame(results["budget_curve"], by="mean_macs"),
        reported_budgets=_frame(results.get("reported_budgets") or [], by="budget"),
        threshold_methods=results.get("threshold_methods") or None,
        **optional,
    )


def _read_results(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    remedy = (
        f"write it with `python launch.py --config=configs/NAME.py --workdir={workdir}"
        " --mode=evaluate`"
    )
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; {remedy}")
    return read_results(path, remedy)


def _frame(rows: list[dict[str, Any]], by: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.sort_values(by, kind="stable", ignore_index=True) if len(frame) else frame


def load_progress(workdir: str | Path) -> RunRecord:
    """Reads a run that is still training, for `figure_training`.

    Args:
      workdir: the folder given to `launch.py --workdir`.

    Returns:
      A record with the metrics logged so far. All other attributes are empty or None.

    Raises:
      FileNotFoundError: no epoch has been logged yet.
    """
    workdir = local_path("workdir", workdir)
    metrics = read_metrics(workdir)
    if metrics is None:
        raise MissingFileError(
            f"{workdir} has no metrics.jsonl in phase_one or phase_two; wait for the end of the "
            "first epoch, or check the path"
        )
    exits = pd.DataFrame({"exit": range(1, 1 + len(metrics["top1_per_exit"].iloc[0]))})
    empty = pd.DataFrame()
    dataset = {"name": "still training"}
    return RunRecord(workdir, {}, dataset, {}, {}, exits, empty, empty, metrics=metrics)


def read_metrics(workdir: str | Path) -> pd.DataFrame | None:
    """Reads the metrics of both phases; may be called while the run is training.

    Args:
      workdir: the folder given to `launch.py --workdir`.

    Returns:
      One row per phase, split and epoch, or None before the first. The column `phase` has the name
      of the phase's folder.
    """
    paths = {phase: Path(workdir) / phase / "metrics.jsonl" for phase in PHASES}
    rows = [
        {**row, "phase": phase} for phase, path in paths.items() for row in read_metric_rows(path)
    ]
    if not rows:
        return None
    # A run that was killed and resumed logs an epoch twice; the later row counts.
    frame = pd.DataFrame(rows).drop_duplicates(["phase", "split", "epoch"], keep="last")
    return frame.sort_values(["phase", "epoch"], kind="stable", ignore_index=True)


def _read_samples(path: Path) -> pd.DataFrame | None:
    samples = _read_or_none(path, pd.read_parquet)
    # Without reported budgets the file has no exits and predictions.
    if samples is None or not any(name.startswith("budget_") for name in samples.columns):
        return None
    return samples


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    def read(path: Path) -> dict[str, np.ndarray]:
        # Opened here: np.load leaks the file handle if the file is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    return _read_or_none(path, read)


def _read_or_none(path: Path, read: Callable[[Path], Content]) -> Content | None:
    """The content of a file of the evaluation; None without it, or with a warning if damaged."""
    if not path.exists():
        return None
    try:
        check_regular_file(path)
        return read(path)
    except Exception as error:  # Readers of archives and Parquet raise many types for damage.
        reason = " ".join(str(error).split())[:200]
        _log.warning(
            "%s is damaged (%s: %s); the report omits it. To write it again, delete %s and"
            " run --mode=evaluate",
            path,
            type(error).__name__,
            reason,
            path.parent.parent / "results.json",
        )
        return None
