"""Bit-for-bit comparison of two finished runs, for `kill_and_resume.py`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

# Fields of JSON files that differ between any two runs.
PER_RUN = ("images_per_second", "input_wait_share", "seconds", "finished", "command")


def modification_times(folder: Path, pattern: str) -> dict[str, int]:
    """Modification times of the files in a folder that match a pattern."""
    stamps = {}
    with contextlib.suppress(FileNotFoundError):  # renamed in the meantime
        for path in folder.glob(pattern):
            stamps[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return stamps


def _bits(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(value)
    return str(array.dtype), array.shape, array.tobytes()


def _read_json(text: str) -> dict[str, Any]:
    """Parses JSON without the fields that differ between any two runs."""
    return json.loads(text, object_pairs_hook=lambda p: {k: v for k, v in p if k not in PER_RUN})


def contents(workdir: Path) -> Iterator[tuple[str, Any]]:
    """Names and values of everything in a finished run that must not depend on interruptions."""
    for phase in sorted(workdir.glob("phase_*")):
        last = max((p for p in phase.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        for item in (last / "model", last / "progress"):
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(item)
            for name, array in jax.tree_util.tree_leaves_with_path(tree):
                yield f"{item.relative_to(workdir)}{jax.tree_util.keystr(name)}", _bits(array)
        for i, line in enumerate((phase / "metrics.jsonl").read_text().splitlines(), start=1):
            yield f"{phase.name}/metrics.jsonl, row {i}", _read_json(line)
    for field, value in _read_json((workdir / "results.json").read_text()).items():
        yield f"results.json, {field}", value
    for path in sorted(workdir.glob("evaluation/*.npz")):
        with np.load(path) as arrays:
            yield from ((f"evaluation/{path.name}, {name}", _bits(a)) for name, a in arrays.items())
    for name, column in pd.read_parquet(workdir / "evaluation" / "samples.parquet").items():
        yield f"evaluation/samples.parquet, {name}", _bits(column)
    # The report's files, and files that an interruption may leave behind.
    for pattern in ("report/*", "**/*.partial", "**/unreadable_*"):
        yield from ((name, "exists") for name in modification_times(workdir, pattern))


def differences(workdir: Path, reference: Path) -> list[str]:
    """One line per difference between two finished runs."""
    try:
        actual, expected = dict(contents(workdir)), dict(contents(reference))
    except Exception as error:  # orbax raises many types for damaged checkpoints
        return [f"cannot be read: {error}"]
    lines = [f"missing: {name}" for name in expected.keys() - actual.keys()]
    lines += [f"unexpected: {name}" for name in actual.keys() - expected.keys()]
    lines += [f"differs: {n}" for n in actual.keys() & expected.keys() if actual[n] != expected[n]]
    return sorted(lines)
