"""`study.json`: what a study's rows say together. Each row is a file, written when it is done."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_atomically
from imta_jax.studies.variants import Arm, other_arms


def row_path(folder: Path, arm: str, seed: int) -> Path:
    """Where an arm's row for a seed is kept."""
    return folder / "rows" / f"{arm}-{seed}.json"


def read_rows(folder: Path, arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """All rows there are of some arms, arm after arm, by rising seed."""
    found = [json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")]
    place = {arm.name: number for number, arm in enumerate(arms)}
    mine = [row for row in found if row["arm"] in place]
    return sorted(mine, key=lambda row: (place[row["arm"]], row["seed"]))


def write_record(
    folder: Path,
    config: Mapping[str, Any],
    arms: Sequence[Arm],
    costs: Mapping[str, list[dict[str, int]]],
    dataset: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes `study.json` from the rows there are, and returns what it holds.

    What an earlier call had left there of other arms and seeds stays in it.

    Args:
      folder: of the study.
      config: of the study.
      arms: those chosen, in order.
      costs: per arm, what each exit costs.
      dataset: as in a run's `results.json`.
    """
    path = folder / "study.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    arms = [*arms, *other_arms(config, earlier.get("arms", ()))]
    costs = {name: arm["costs"] for name, arm in earlier.get("arms", {}).items()} | dict(costs)
    rows = read_rows(folder, arms)
    # Where nothing is trained, less is known of the data.
    dataset = max((dataset, earlier.get("dataset")), key=lambda known: len(known or ()))
    record = {
        "study": config["study"],
        "preset": config["preset"],
        "environment": environment_record(),
        "dataset": dataset,
        "baseline": config["baseline"],
        "arms": {arm.name: _describe(arm, costs.get(arm.name)) for arm in arms},
        "seeds": sorted({*config["seeds"], *(row["seed"] for row in rows)}),
        "rows": rows,
        "summary": summarize(rows, {arm.name: arm.against for arm in arms}),
    }
    write_atomically(path, _text(record))
    return record


def _text(record: Mapping[str, Any]) -> str:
    """The record as JSON with a line per row: of many arms it stays readable, and not too long."""
    lists = {name: record[name] for name in ("rows", "summary")}
    head = json.dumps({name: record[name] for name in record if name not in lists}, indent=1)
    parts = [
        f' "{name}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n ]"
        for name, entries in lists.items()
    ]
    return ",\n".join([head.removesuffix("\n}"), *parts]) + "\n}\n"


def _describe(arm: Arm, costs: list[dict[str, int]] | None) -> dict[str, Any]:
    return {
        "label": arm.label,
        "techniques": None if arm.techniques is None else list(arm.techniques),
        "network": arm.network,
        "against": arm.against,
        "overrides": dict(arm.overrides),
        "costs": costs,
    }


def summarize(
    rows: Sequence[Mapping[str, Any]], against: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, per arm and exit, and paired differences.

    Args:
      rows: of all arms; those that failed are left out.
      against: per arm the arm whose test accuracy at the same exit and seed is subtracted.

    Returns:
      One entry per arm and exit: `top1_mean`, `top1_std`, `validation_top1_mean`,
      `validation_top1_std` (percent; sample standard deviations, None for one seed),
      `difference_mean`, `difference_std` (points; None where there is nothing to subtract).
    """
    exits = {
        (row["arm"], row["seed"], entry["exit"]): entry
        for row in rows
        if row["status"] == "done"
        for entry in row["exits"]
    }
    summary = []
    for arm, number in dict.fromkeys((arm, number) for arm, _, number in exits):
        seeds = [s for a, s, n in exits if (a, n) == (arm, number)]
        mine = {seed: exits[arm, seed, number] for seed in seeds}
        other = against[arm]
        differences = [
            mine[s]["top1"] - exits[other, s, number]["top1"]
            for s in seeds
            if other != arm and (other, s, number) in exits
        ]
        entry: dict[str, Any] = {"arm": arm, "exit": number, "seeds": len(seeds)}
        for name in ("top1", "validation_top1"):
            entry |= _spread(name, [e[name] for e in mine.values()])
        summary.append(entry | _spread("difference", differences))
    return summary


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    mean = statistics.fmean(values) if values else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": mean, f"{name}_std": deviation}
