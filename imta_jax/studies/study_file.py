"""Writes `study.json` from the result rows. Each row is a file, written when its run is done."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_atomically
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.studies.config import StudyConfig
from imta_jax.studies.variants import Variant, unchosen_variants


def row_path(folder: Path, variant: str, seed: int) -> Path:
    """The file of a variant's row for a seed, in the study's folder."""
    return folder / "rows" / f"{variant}-{seed}.json"


def has_row(folder: Path, variant: str, seed: int) -> bool:
    """Whether a variant has a readable row for a seed."""
    return _read_row(row_path(folder, variant, seed)) is not None


def _read_row(path: Path) -> dict[str, Any] | None:
    return read_json_or_none(path, "the next run of the study writes it again")


def read_rows(folder: Path, variants: Iterable[Variant]) -> list[dict[str, Any]]:
    """Reads the existing rows of some variants, in the order of the variants, then by seed."""
    paths = (folder / "rows").glob("*.json")
    rows = [row for path in paths if (row := _read_row(path)) is not None]
    position = {variant.name: number for number, variant in enumerate(variants)}
    selected = [row for row in rows if row["arm"] in position]
    return sorted(selected, key=lambda row: (position[row["arm"]], row["seed"]))


def write_record(
    folder: Path,
    study: StudyConfig,
    variants: Sequence[Variant],
    costs: Mapping[str, list[dict[str, int]]],
    dataset: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes `study.json` from the existing rows and returns its content.

    Other variants and seeds that an earlier call recorded are kept.

    Args:
      folder: folder of the study.
      study: settings of the study.
      variants: the chosen variants, in order.
      costs: costs per exit, by variant name.
      dataset: description of the dataset as in `results.json`.
    """
    path = folder / "study.json"
    earlier = read_json_or_none(path, "it is written again from the rows") or {}
    variants = [*variants, *unchosen_variants(study, earlier.get("arms", ()))]
    costs = {name: arm["costs"] for name, arm in earlier.get("arms", {}).items()} | dict(costs)
    rows = read_rows(folder, variants)
    # A call that trains nothing describes the dataset by its name only.
    dataset = max((dataset, earlier.get("dataset")), key=lambda record: len(record or ()))
    record = {
        "study": study.name,
        "preset": study.preset,
        "environment": environment_record(),
        "dataset": dataset,
        "baseline": study.baseline,
        "arms": {variant.name: _describe(variant, costs.get(variant.name)) for variant in variants},
        "seeds": sorted({*study.seeds, *(row["seed"] for row in rows)}),
        "rows": rows,
        "summary": summarize(rows, {variant.name: variant.against for variant in variants}),
    }
    write_atomically(path, _json_text(record))
    return record


def _json_text(record: Mapping[str, Any]) -> str:
    """The record as JSON with one line per row, which keeps studies of many variants readable."""
    lists = {name: record[name] for name in ("rows", "summary")}
    head = json.dumps({name: record[name] for name in record if name not in lists}, indent=1)
    parts = [
        f' "{name}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n ]"
        for name, entries in lists.items()
    ]
    return ",\n".join([head.removesuffix("\n}"), *parts]) + "\n}\n"


def _describe(variant: Variant, costs: list[dict[str, int]] | None) -> dict[str, Any]:
    return {
        "label": variant.label,
        "techniques": None if variant.techniques is None else list(variant.techniques),
        "network": variant.network,
        "against": variant.against,
        "overrides": dict(variant.overrides),
        "costs": costs,
    }


def summarize(
    rows: Sequence[Mapping[str, Any]], against: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Computes means and standard deviations over seeds, and paired differences.

    Args:
      rows: rows of all variants; failed ones are ignored.
      against: by variant name, the variant whose test accuracy at the same exit and seed is
        subtracted.

    Returns:
      One entry per variant and exit: `top1_mean`, `top1_std`, `validation_top1_mean`,
      `validation_top1_std` (percent; sample standard deviations, None for one seed),
      `difference_mean` and `difference_std` (points; None without a common seed).
    """
    exits = {
        (row["arm"], row["seed"], entry["exit"]): entry
        for row in rows
        if row["status"] == "done"
        for entry in row["exits"]
    }
    summary = []
    for name, number in dict.fromkeys((name, number) for name, _, number in exits):
        seeds = [s for v, s, n in exits if (v, n) == (name, number)]
        by_seed = {seed: exits[name, seed, number] for seed in seeds}
        baseline = against[name]
        differences = [
            by_seed[s]["top1"] - exits[baseline, s, number]["top1"]
            for s in seeds
            if baseline != name and (baseline, s, number) in exits
        ]
        entry: dict[str, Any] = {"arm": name, "exit": number, "seeds": len(seeds)}
        for field in ("top1", "validation_top1"):
            entry |= _mean_and_std(field, [e[field] for e in by_seed.values()])
        summary.append(entry | _mean_and_std("difference", differences))
    return summary


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    mean = statistics.fmean(values) if values else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": mean, f"{name}_std": deviation}
