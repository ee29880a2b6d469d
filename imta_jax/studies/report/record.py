"""Reading a study: arms x seeds, as the report's tables and figures ask for them.

Everything is computed from the rows of runs that are done. Accuracies are percentages, costs are
multiply-adds per image, exits count from 1 in rows and from 0 in arrays. A standard deviation is
that of a sample (ddof = 1) and NaN for a single seed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.report.style import pluralize
from imta_jax.studies.report.paper_numbers import TECHNIQUES, dataset_title, known_dataset

STUDIES = ("ablation", "exits", "budget", "equilibrium", "distillation")
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
REQUIRED = ("study", "preset", "environment", "arms", "seeds", "rows")
REQUIRED_OF_A_RUN = ("schedule", "exits", "budget_curve", "validation_curve")


@dataclass(frozen=True)
class Arm:
    """One arm of a study.

    Attributes:
      name: its key in the study.
      label: its name for readers.
      network: which network was trained.
      techniques: those of GE, ISC, OFA it uses; None for other networks than MSDNet.
      overrides: which config fields it sets.
      costs: per exit `macs`, `published_ops` and `params`, known before anything is run; maybe ().
    """

    name: str
    label: str
    network: str
    techniques: frozenset[str] | None
    overrides: Mapping[str, Any]
    costs: tuple[Mapping[str, int], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is an MSDNet with none of the techniques."""
        return self.techniques == frozenset()

    @property
    def is_full(self) -> bool:
        """Whether it is an MSDNet with all of the techniques."""
        return self.techniques == frozenset(TECHNIQUES)


@dataclass(frozen=True, repr=False)
class StudyRecord:
    """One study with its rows.

    Attributes:
      name: which study, e.g. "ablation".
      preset: which variant of its config.
      dataset: as in a run's `results.json`; None before any run was done.
      environment: device, number of devices, versions.
      baseline: the arm that differences are taken against.
      arms: in the order of tables.
      seeds: those asked for.
      rows: one per arm and seed that was run or failed.
    """

    name: str
    preset: str
    dataset: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    baseline: str | None
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    rows: tuple[Mapping[str, Any], ...]

    def __repr__(self) -> str:
        return f"StudyRecord({self.title!r}: {len(self.arms)} arms, {len(self.rows)} rows)"

    @property
    def title(self) -> str:
        """Study, preset and dataset, e.g. "ablation:quickstart on CIFAR-10"."""
        return f"{self.name}:{self.preset} on {self.dataset_title}"

    @property
    def dataset_title(self) -> str:
        """The dataset's name as it is written."""
        return dataset_title(self._dataset_name)

    @property
    def known_dataset(self) -> str | None:
        """The paper's dataset it was run on, or None for any other."""
        return known_dataset(self._dataset_name)

    @property
    def _dataset_name(self) -> str | None:
        """The dataset's name; before any run a preset named for one of the paper's says it too."""
        return (self.dataset or {}).get("name") or known_dataset(self.preset.split(",")[0])

    def done(self, arm: Arm) -> dict[int, Mapping[str, Any]]:
        """The rows of an arm's runs that are done, by seed."""
        own = [row for row in self.rows if row["arm"] == arm.name and row["status"] == "done"]
        return {row["seed"]: row for row in sorted(own, key=lambda row: row["seed"])}

    def failures(self, arm: Arm) -> dict[int, str]:
        """The errors of an arm's runs that failed, by seed."""
        own = [row for row in self.rows if row["arm"] == arm.name and row["status"] == "failed"]
        return {row["seed"]: str(row.get("error") or "no reason given") for row in own}

    def state(self, arm: Arm) -> str:
        """How much of an arm was run: "3 of 3", "2 of 3, 1 failed", "failed", "not run"."""
        done, failed = len(self.done(arm)), len(self.failures(arm))
        if done:
            return f"{done} of {len(self.seeds)}" + (f", {failed} failed" if failed else "")
        return "failed" if failed else "not run"

    def top1(self, arm: Arm, split: str = "test") -> np.ndarray:
        """Top-1 of an arm's runs that are done, [seeds, exits], by rising seed; maybe [0, 0]."""
        return accuracies(self.done(arm), split)

    def baseline_of(self, arm: Arm) -> Arm | None:
        """What an arm is compared with: the baseline, or the plain arm of the same network.

        Exits of another network lie at other depths, so no difference to them is taken.
        """
        candidates = [a for a in self.arms if a.name == self.baseline and a.network == arm.network]
        candidates += [a for a in self.arms if a.is_plain and a.network == arm.network]
        return candidates[0] if candidates and candidates[0] != arm else None

    def differences(self, arm: Arm, split: str = "test") -> np.ndarray:
        """Top-1 minus the baseline's at the same seed, [common seeds, common exits] or [0, 0]."""
        baseline = self.baseline_of(arm)
        if baseline is None:
            return np.zeros((0, 0))
        own, plain = self.done(arm), self.done(baseline)
        common = sorted(own.keys() & plain.keys())
        ours, theirs = (accuracies({s: rows[s] for s in common}, split) for rows in (own, plain))
        exits = min(ours.shape[1], theirs.shape[1])
        return ours[:, :exits] - theirs[:, :exits]

    def mark(self) -> str:
        """Where every number comes from: study, dataset, schedule, seeds, hardware; one line."""
        environment = self.environment
        device, cores = environment.get("device", "unknown device"), environment.get("cores")
        hardware = f"{environment.get('devices', 1)} x {device}"
        if device == "cpu" and cores:
            hardware += f" of {cores} cores"
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        parts = [f"{self.name}:{self.preset}", self._data(), self.schedule()]
        return " · ".join([*parts, *([seeds] if self.seeds else []), hardware])

    def schedule(self) -> str:
        """Epochs and batch size of both phases, over all runs that are done."""
        schedules = [row["schedule"] for arm in self.arms for row in self.done(arm).values()]
        if not schedules:
            return "nothing run yet"
        one = _distinct(_phase(schedule.get("phase_one")) for schedule in schedules)
        two = _distinct(_phase(schedule.get("phase_two")) for schedule in schedules)
        return f"phase I {one}, phase II {two}"

    def _data(self) -> str:
        examples = (self.dataset or {}).get("examples") or {}
        counts = [
            f"{examples[split]:,} {name}" for split, name in SPLITS.items() if split in examples
        ]
        return self.dataset_title + (f" ({', '.join(counts)} images)" if counts else "")


def _distinct(texts: Any) -> str:
    return " or ".join(dict.fromkeys(texts))


def _phase(schedule: Mapping[str, Any] | None) -> str:
    if not schedule:
        return "none"
    return f"{pluralize(schedule['epochs'], 'epoch')} of batch {schedule['batch_size']}"


def accuracies(rows: Mapping[int, Mapping[str, Any]], split: str = "test") -> np.ndarray:
    """Top-1 of rows that are done, [rows, exits], percent; [0, 0] of none.

    Args:
      rows: by seed, of one arm.
      split: "test" or "validation".
    """
    key = {"test": "top1", "validation": "validation_top1"}[split]
    lists = [[float(exit_[key]) for exit_ in row["exits"]] for row in rows.values()]
    return np.array(lists) if lists else np.zeros((0, 0))


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the first axis; NaN where one value leaves none."""
    values = np.asarray(values, dtype=float)
    missing = np.full(values.shape[1:], math.nan)
    mean = values.mean(axis=0) if len(values) else missing
    return mean, (values.std(axis=0, ddof=1) if len(values) > 1 else missing)


def study_from(study: object, source: str = "the study") -> StudyRecord:
    """Checks a study and gives it the form that tables and figures read.

    Args:
      study: what `study.json` holds.
      source: where it comes from, for messages.

    Returns:
      The record.

    Raises:
      ValueError: it is not a study, or a row lacks a part; the message says what was found.
    """
    if not isinstance(study, Mapping):
        raise ValueError(f"{source} is not a study: expected an object, found {_kind(study)}")
    missing = [name for name in REQUIRED if name not in study]
    if missing:
        found = ", ".join(map(str, study)) or "nothing"
        raise ValueError(
            f"{source} is not a study: it has no {', '.join(missing)}; found {found}; expected the"
            " study.json that `python launch.py --mode=study` writes"
        )
    arms = tuple(_arm(name, arm) for name, arm in study["arms"].items())
    for row in study["rows"]:
        _check_row(row, {arm.name for arm in arms}, source)
    return StudyRecord(
        name=study["study"],
        preset=str(study["preset"]),
        dataset=study.get("dataset"),
        environment=study["environment"] or {},
        baseline=study.get("baseline"),
        arms=arms,
        seeds=tuple(study["seeds"]),
        rows=tuple(study["rows"]),
    )


def load_study(path: str | Path) -> StudyRecord:
    """Reads a `study.json`.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is not JSON, or not a study; either message says what was found.
    """
    return study_from(read_json(path), str(path))


def read_json(path: str | Path) -> object:
    """What a JSON file holds; errors as in `load_study`."""
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(
            f"expected a study.json at {path}, found {found}; "
            "`python launch.py --mode=study --workdir=DIR ...` writes DIR/STUDY/study.json"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _kind(value: object) -> str:
    return f"{'a list' if isinstance(value, list) else type(value).__name__}: {str(value)[:60]}"


def _arm(name: str, arm: Mapping[str, Any]) -> Arm:
    techniques = arm.get("techniques")
    return Arm(
        name=name,
        label=str(arm.get("label") or name),
        network=str(arm.get("network") or ""),
        techniques=None if techniques is None else frozenset(techniques),
        overrides=arm.get("overrides") or {},
        costs=tuple(arm.get("costs") or ()),
    )


def _check_row(row: Mapping[str, Any], arms: set[str], source: str) -> None:
    where = f"{source}, row of arm {row.get('arm')!r}, seed {row.get('seed')!r}"
    if row.get("arm") not in arms:
        raise ValueError(f"{where}: no such arm; the study has {', '.join(sorted(arms))}")
    if row.get("status") not in ("done", "failed"):
        raise ValueError(f"{where}: expected status done or failed, found {row.get('status')!r}")
    lacking = [name for name in REQUIRED_OF_A_RUN if not row.get(name)]
    if row["status"] == "done" and lacking:
        raise ValueError(f"{where}: it is done, but has no {', '.join(lacking)}")
