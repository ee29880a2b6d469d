"""Reading a run's folder: everything the report shows, as one frozen record.

Only files that `launch.py` writes are read; nothing is computed here that needs a network, so a
report can be made on a laptop from a copied folder. Accuracies and calibration errors are
percentages; costs are cumulative multiply-adds per image; exits count from 1 in `results.json` and
from 0 in arrays.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PHASES = ("phase_one", "phase_two")
REQUIRED = ("dataset", "phases", "environment", "exits", "budget_curve")


@dataclass(frozen=True, repr=False)
class RunRecord:
    """One run, as its folder tells it.

    Attributes:
      workdir: the run's folder.
      config: `config.json`, nested; empty if the file is absent.
      dataset: name, class names, image shape, number of examples per split, statistics.
      phases: what each phase took, by phase name; a phase that was not run is left out.
      environment: device, versions, seed, time of finishing.
      exits: one row per exit, by rising cost: `exit` (from 1), `macs`, `published_ops`, `params`,
        `top1`, `top5`, `ece`.
      budget_curve: one row per budget, by rising `mean_macs`: also `quota`, `thresholds`,
        `validation_top1`, `top1`, `exit_fractions`.
      reported_budgets: the budgets chosen for tables, by rising `budget` (a fraction of the last
        exit's multiply-adds); may be empty.
      threshold_methods: how several ways to choose thresholds compare: `points` (see
        `evaluation.comparison_rows`) and the terms of their intervals; None in older results.
      metrics: one row per phase, split and epoch, or None if no phase left any.
      samples: one row per test image with its exit at each reported budget, or None; None
        also where no budget was reported.
      gallery: arrays of easy and hard images, or None.
      calibration: `confidence`, `accuracy`, `count`, each [E, bins], or None.
      time: what exits cost in milliseconds where it was measured (`inference.timing`), or None.
    """

    workdir: Path
    config: dict[str, Any]
    dataset: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    exits: pd.DataFrame
    budget_curve: pd.DataFrame
    reported_budgets: pd.DataFrame
    threshold_methods: dict[str, Any] | None
    metrics: pd.DataFrame | None
    samples: pd.DataFrame | None
    gallery: dict[str, np.ndarray] | None
    calibration: dict[str, np.ndarray] | None
    time: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"RunRecord({str(self.workdir)!r}: {self.dataset['name']}, {self.num_exits} exits)"

    @property
    def num_exits(self) -> int:
        """Number of exits, E."""
        return len(self.exits)

    @property
    def full_macs(self) -> float:
        """Multiply-adds of one image that goes through the last exit."""
        return float(self.exits["macs"].iloc[-1])

    @property
    def full_top1(self) -> float:
        """Test top-1 of the last exit alone, in percent."""
        return float(self.exits["top1"].iloc[-1])

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where the dataset names none."""
        names = self.dataset.get("class_names") or []
        return str(names[label]) if 0 <= label < len(names) else str(label)


def load_run(workdir: str | Path) -> RunRecord:
    """Reads a run's folder.

    Args:
      workdir: the folder given to `launch.py --workdir`.

    Returns:
      The record; parts whose file is absent are None (or empty, see `RunRecord`).

    Raises:
      FileNotFoundError: `results.json` is not there; the message has the command that writes it.
      ValueError: `results.json` is damaged or lacks a part.
    """
    workdir = Path(workdir)
    results = _read_results(workdir)
    evaluation = workdir / "evaluation"
    config = workdir / "config.json"
    return RunRecord(
        workdir=workdir,
        config=json.loads(config.read_text(encoding="utf-8")) if config.exists() else {},
        dataset=results["dataset"],
        phases={name: facts for name, facts in results["phases"].items() if facts},
        environment=results["environment"],
        exits=_frame(results["exits"], by="macs"),
        budget_curve=_frame(results["budget_curve"], by="mean_macs"),
        reported_budgets=_frame(results.get("reported_budgets") or [], by="budget"),
        threshold_methods=results.get("threshold_methods") or None,
        metrics=read_metrics(workdir),
        samples=_read_samples(evaluation / "samples.parquet"),
        gallery=_read_arrays(evaluation / "gallery.npz"),
        calibration=_read_arrays(evaluation / "calibration.npz"),
        time=_read_json(evaluation / "time.json"),
    )


def _read_results(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    remedy = (
        f"write it with `python launch.py --config=configs/NAME.py --workdir={workdir}"
        " --mode=evaluate`"
    )
    if not path.exists():
        raise FileNotFoundError(f"no results to report: {path} is not there; {remedy}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    # An empty list of exits or budgets is as good as none: there is nothing to draw.
    missing = [name for name in REQUIRED if not results.get(name)]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; {remedy}")
    return results


def _frame(rows: list[dict[str, Any]], by: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.sort_values(by, kind="stable", ignore_index=True) if len(frame) else frame


def load_progress(workdir: str | Path) -> RunRecord:
    """Reads a run that is still being trained: enough for `figure_training`, and no more.

    Args:
      workdir: the folder given to `launch.py --workdir`.

    Returns:
      A record whose `metrics` are those logged so far, and whose other parts are empty or None.

    Raises:
      FileNotFoundError: no epoch was logged yet.
    """
    workdir = Path(workdir)
    metrics = read_metrics(workdir)
    if metrics is None:
        raise FileNotFoundError(
            f"{workdir} has no metrics.jsonl of any phase yet; wait for the first epoch's end, or "
            "is it another folder?"
        )
    exits = pd.DataFrame({"exit": range(1, 1 + len(metrics["top1_per_exit"].iloc[0]))})
    empty = pd.DataFrame()
    dataset = {"name": "still training"}
    return RunRecord(
        workdir, {}, dataset, {}, {}, exits, empty, empty, None, metrics, None, None, None
    )


def read_metrics(workdir: str | Path) -> pd.DataFrame | None:
    """What both phases logged, one row per phase, split and epoch; None before the first.

    `phase` is the folder's name, whatever the rows say. May be called while the run is training.

    Args:
      workdir: the folder given to `launch.py --workdir`.
    """
    paths = {phase: Path(workdir) / phase / "metrics.jsonl" for phase in PHASES}
    rows = [
        {**row, "phase": phase}
        for phase, path in paths.items()
        if path.exists()
        for row in _json_lines(path)
    ]
    if not rows:
        return None
    # A run that was killed and went on logs an epoch twice; the later row is the one that counts.
    frame = pd.DataFrame(rows).drop_duplicates(["phase", "split", "epoch"], keep="last")
    return frame.sort_values(["phase", "epoch"], kind="stable", ignore_index=True)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a kill can leave half a line behind."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _read_samples(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    samples = pd.read_parquet(path)
    # Where no budget could be reported, nothing is known of how each image fared.
    return samples if any(name.startswith("budget_") for name in samples.columns) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
