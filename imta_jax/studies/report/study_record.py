"""Reads a study: variants x seeds, in the form that tables and figures need.

Everything is computed from the rows of finished runs. Accuracies are percentages. Costs are
multiply-adds per image. Exits count from 1 in rows and from 0 in arrays. Standard deviations are
sample standard deviations (ddof = 1), NaN for a single seed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imta_jax.report.style import pluralize
from imta_jax.studies.report.paper_numbers import TECHNIQUES, dataset_title, known_dataset

STUDIES = ("ablation", "exits", "budget", "equilibrium", "distillation", "recipes", "sweep")
SPLIT_NAMES = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class VariantRecord:
    """A variant as `study.json` describes it (there under `arms`).

    Attributes:
      name: key in the study.
      label: name in tables and figures.
      network: name of the network's preset or backbone.
      techniques: those of GE, ISC and OFA that it uses; None for networks other than MSDNet.
      overrides: config values that differ from the study's base, by dotted field.
      costs: `macs`, `published_ops` and `params` per exit, known before any run; may be empty.
      against: name of the variant it is compared with; "" stands for the study's baseline.
    """

    name: str
    label: str
    network: str
    techniques: frozenset[str] | None
    overrides: Mapping[str, Any]
    costs: tuple[Mapping[str, int], ...] = ()
    against: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is an MSDNet with none of the techniques."""
        return self.techniques == frozenset()

    @property
    def is_full(self) -> bool:
        """Whether it is an MSDNet with all techniques."""
        return self.techniques == frozenset(TECHNIQUES)


@dataclass(frozen=True, repr=False)
class StudyRecord:
    """The content of a `study.json`.

    Attributes:
      name: which study, for example "ablation".
      preset: which preset of its config.
      dataset: description as in `results.json`; None before the first run.
      environment: device, number of devices, versions.
      baseline: name of the variant that differences are taken against.
      variants: all variants, in table order.
      seeds: the requested seeds.
      rows: one per variant and seed that finished or failed.
    """

    name: str
    preset: str
    dataset: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    baseline: str | None
    variants: tuple[VariantRecord, ...]
    seeds: tuple[int, ...]
    rows: tuple[Mapping[str, Any], ...]

    def __repr__(self) -> str:
        counts = f"{len(self.variants)} variants, {len(self.rows)} rows"
        return f"StudyRecord({self.title!r}: {counts})"

    @property
    def title(self) -> str:
        """Study, preset and dataset, for example "ablation:quickstart on CIFAR-10"."""
        return f"{self.name}:{self.preset} on {self.dataset_title}"

    @property
    def dataset_title(self) -> str:
        """The dataset's name as it is usually written."""
        return dataset_title(self._dataset_name)

    @property
    def known_dataset(self) -> str | None:
        """Key of the paper's dataset that the study uses, or None for any other dataset."""
        return known_dataset(self._dataset_name)

    @property
    def _dataset_name(self) -> str | None:
        """The dataset's name; before the first run, the preset if it names a dataset."""
        return (self.dataset or {}).get("name") or known_dataset(self.preset.split(",")[0])

    def finished(self, variant: VariantRecord) -> dict[int, Mapping[str, Any]]:
        """The rows of a variant's finished runs by seed, in rising order."""
        rows = self._rows(variant, "done")
        return {row["seed"]: row for row in sorted(rows, key=lambda row: row["seed"])}

    def failures(self, variant: VariantRecord) -> dict[int, str]:
        """The errors of a variant's failed runs by seed."""
        rows = self._rows(variant, "failed")
        return {row["seed"]: str(row.get("error") or "no error recorded") for row in rows}

    def _rows(self, variant: VariantRecord, status: str) -> list[Mapping[str, Any]]:
        return [r for r in self.rows if r["arm"] == variant.name and r["status"] == status]

    def status(self, variant: VariantRecord) -> str:
        """For example "3 of 3", "2 of 3, 1 failed", "failed" or "not run"."""
        finished, failed = len(self.finished(variant)), len(self.failures(variant))
        if finished:
            text = f"{finished} of {len(self.seeds)}"
            return text + (f", {failed} failed" if failed else "")
        return "failed" if failed else "not run"

    def top1(self, variant: VariantRecord, split: str = "test") -> np.ndarray:
        """Top-1 of a variant's finished runs: [seeds, exits] by rising seed, [0, 0] without any."""
        return accuracies(self.finished(variant).values(), split)

    def baseline_of(self, variant: VariantRecord) -> VariantRecord | None:
        """The variant to compare with, of the same network: its own, the baseline or a plain one.

        Variants of another network are not compared, since their exits lie at other depths.
        """
        of_network = [v for v in self.variants if v.network == variant.network]
        candidates = [
            v for name in (variant.against, self.baseline) for v in of_network if v.name == name
        ]
        candidates += [v for v in of_network if v.is_plain]
        return candidates[0] if candidates and candidates[0] != variant else None

    def paired_rows(
        self, variant: VariantRecord
    ) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Rows of a variant and of its baseline for each common seed; empty without a baseline."""
        baseline = self.baseline_of(variant)
        if baseline is None:
            return []
        rows, baseline_rows = self.finished(variant), self.finished(baseline)
        return [
            (rows[seed], baseline_rows[seed]) for seed in sorted(rows.keys() & baseline_rows.keys())
        ]

    def differences(self, variant: VariantRecord, split: str = "test") -> np.ndarray:
        """Top-1 minus the baseline's of the same seed: [common seeds, common exits], or [0, 0]."""
        pairs = self.paired_rows(variant)
        values, baseline_values = (accuracies([pair[i] for pair in pairs], split) for i in (0, 1))
        exits = min(values.shape[1], baseline_values.shape[1])
        return values[:, :exits] - baseline_values[:, :exits]

    def provenance(self) -> str:
        """One line with study, dataset, schedule, seeds and hardware of the numbers."""
        environment = self.environment
        device, cores = environment.get("device", "unknown device"), environment.get("cores")
        hardware = f"{environment.get('devices', 1)} x {device}"
        if device == "cpu" and cores:
            hardware += f" with {cores} cores"
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        parts = [f"{self.name}:{self.preset}", self._data(), self.schedule()]
        return " · ".join([*parts, *([seeds] if self.seeds else []), hardware])

    def schedule(self) -> str:
        """Epochs and batch sizes of both phases, over all finished runs."""
        schedules = [row["schedule"] for v in self.variants for row in self.finished(v).values()]
        if not schedules:
            return "no finished runs"
        phase_one = _join_distinct(_phase(schedule.get("phase_one")) for schedule in schedules)
        phase_two = _join_distinct(_phase(schedule.get("phase_two")) for schedule in schedules)
        return f"phase I: {phase_one}; phase II: {phase_two}"

    def _data(self) -> str:
        examples = (self.dataset or {}).get("examples") or {}
        counts = [
            f"{examples[split]:,} {name}"
            for split, name in SPLIT_NAMES.items()
            if split in examples
        ]
        return self.dataset_title + (f" ({', '.join(counts)} images)" if counts else "")


def _join_distinct(texts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def _phase(schedule: Mapping[str, Any] | None) -> str:
    if not schedule:
        return "none"
    return f"{pluralize(schedule['epochs'], 'epoch')} (batch size {schedule['batch_size']})"


def accuracies(rows: Iterable[Mapping[str, Any]], split: str = "test") -> np.ndarray:
    """Top-1 of the rows of finished runs in percent: [rows, exits], or [0, 0] without rows.

    Args:
      rows: rows of one variant.
      split: "test" or "validation".
    """
    key = {"test": "top1", "validation": "validation_top1"}[split]
    lists = [[float(exit_[key]) for exit_ in row["exits"]] for row in rows]
    return np.array(lists) if lists else np.zeros((0, 0))


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the first axis; NaN where too few values exist."""
    values = np.asarray(values, dtype=float)
    missing = np.full(values.shape[1:], math.nan)
    mean = values.mean(axis=0) if len(values) else missing
    return mean, (values.std(axis=0, ddof=1) if len(values) > 1 else missing)
