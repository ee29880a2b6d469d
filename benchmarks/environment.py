"""What the benchmarks share: contenders that take turns, where they ran, how results are kept."""

import argparse
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tabulate import tabulate

from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json

Measurements = dict[str, np.ndarray]  # by contender, what each round found


def take_turns(contenders: Mapping[str, Callable[[int], Any]], rounds: int) -> Measurements:
    """Runs every contender once a round, so that they share whatever else the machine does.

    Args:
      contenders: round's number -> what was measured, one number or several.
      rounds: how many count; one more, in which programs are compiled and files read, goes before.
    """
    names, found = list(contenders), {name: [] for name in contenders}
    for r in range(rounds + 1):
        first = r % len(names)  # each round begins with another, so that none always follows one
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name](r))
    return {name: np.array(values[1:]) for name, values in found.items()}


def clocks() -> np.ndarray:
    """Seconds on the clock and of the processor, all threads of this process together.

    The second hardly knows what else runs on the machine, but counts no device's work.
    """
    return np.array([time.perf_counter(), time.process_time()])


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a module in a fresh interpreter, which shares no memory with this one."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def memory_gb(field: str) -> float:
    """Of this process, on Linux: "VmRSS", what it has in memory, or "VmHWM", the most it ever had.

    Not from getrusage, whose peak includes what the parent process had before this one's program.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return round(int(value) * 1024 / 1e9, 3)


def preloaded() -> dict[str, str]:
    """An allocator that takes malloc's place, and its settings; empty if there is none."""
    names = [Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path]
    settings = os.environ.get("MALLOC_CONF", "")
    return {"preloaded": f"{', '.join(names)} {settings}".strip()} if names else {}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of what the rounds found."""
    values = np.asarray(values, float)
    found = {"median": np.median(values), "least": values.min(), "most": values.max()}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with four digits of each float."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def medians(ratios: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The median over rounds of each ratio, and under `spread` the least and the most as well."""
    found = {name: spread(values) for name, values in ratios.items()}
    return {name: values["median"] for name, values in found.items()} | {"spread": found}


def argument_parser(docstring: str) -> argparse.ArgumentParser:
    """With what every script takes: where its result goes, and whether it may be a rough one."""
    parser = argparse.ArgumentParser(description=docstring.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON")
    parser.add_argument("--quick", action="store_true", help="minutes on two cores")
    return parser


def write_result(
    path: Path | str, modules: Sequence[ModuleType], result: Mapping[str, Any]
) -> None:
    """Prints a result's tables and keeps it, with where it was measured.

    Args:
      path: JSON.
      modules: whose versions matter.
      result: `seeds`, `rows` (those of a table have the same `part`), `summary` (ratios by name),
        `targets` (by the same names) and whatever else.
    """
    for part, rows in itertools.groupby(result["rows"], key=lambda row: row["part"]):
        print(f"\n{part}\n{tabulate([_flat(r) for r in rows], headers='keys', floatfmt='.4g')}")
    values = {name: v for name, v in result["summary"].items() if name != "spread"}
    lines = [(name, value, result["targets"].get(name)) for name, value in values.items()]
    print(f"\n{tabulate(lines, headers=('summary', 'found', 'target'), floatfmt='.4g')}")
    hardware = environment_record(modules)
    measured = {"versions": hardware.pop("versions"), "hardware": hardware, **preloaded()}
    write_json(Path(path), measured | dict(result))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A field of several numbers becomes as many columns."""
    inner = {k: v if isinstance(v, Mapping) else {"": v} for k, v in row.items() if k != "part"}
    return {f"{k} {name}".strip(): value for k, v in inner.items() for name, value in v.items()}
