"""Timing of contenders that take turns, separate processes, memory, and summary statistics."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Measurements = dict[str, np.ndarray]  # contender -> one measurement per round


def take_turns(contenders: Mapping[str, Callable[[int], Any]], rounds: int) -> Measurements:
    """Runs every contender once per round, so that other load on the machine affects all alike.

    Args:
      contenders: functions of the round's number that return one or several measurements.
      rounds: number of rounds that count. One more round goes before for compilation.
    """
    names, results = list(contenders), {name: [] for name in contenders}
    for r in range(rounds + 1):
        first = r % len(names)  # rotate, so that no contender always follows the same one
        for name in names[first:] + names[:first]:
            results[name].append(contenders[name](r))
    return {name: np.array(values[1:]) for name, values in results.items()}


def clocks() -> np.ndarray:
    """Wall-clock seconds, and CPU seconds of all threads of this process.

    CPU time hardly depends on other load, but does not include work on an accelerator.
    """
    return np.array([time.perf_counter(), time.process_time()])


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a module-level function in a fresh interpreter and returns its result."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def memory_gb(field: str) -> float:
    """Memory of this process in GB, on Linux: "VmRSS" is the current value, "VmHWM" the peak.

    The peak of getrusage is not used: it includes the parent process before the exec.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return round(int(value) * 1024 / 1e9, 3)


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, minimum ("least") and maximum ("most") over the rounds, with four digits."""
    values = np.asarray(values, float)
    statistics = {"median": np.median(values), "least": values.min(), "most": values.max()}
    return {name: float(f"{value:.4g}") for name, value in statistics.items()}


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its floats rounded to four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def medians(ratios: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The median of each ratio over the rounds; the key `spread` adds minimum and maximum."""
    spreads = {name: spread(values) for name, values in ratios.items()}
    return {name: values["median"] for name, values in spreads.items()} | {"spread": spreads}
