"""Command-line options of all benchmark scripts, and the JSON file that each one writes."""

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tabulate import tabulate

from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json
from imta_jax.runtime.paths import path_argument


def argument_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser with the options of all scripts, `--out` and `--quick`."""
    parser = argparse.ArgumentParser(description=docstring.partition("\n")[0])
    parser.add_argument(
        "--out", required=True, type=path_argument("--out"), help="JSON file for the result"
    )
    parser.add_argument("--quick", action="store_true", help="a rough result, minutes on 2 cores")
    return parser


def write_result(
    path: Path | str, modules: Sequence[ModuleType], result: Mapping[str, Any]
) -> None:
    """Prints a result's tables and writes it, with hardware and versions, as JSON.

    Args:
      path: the JSON file.
      modules: modules whose versions are recorded.
      result: `seeds`, `rows` (rows of one table have the same `part`), `summary` (ratios by name),
        `targets` (by the same names), and other fields of the script.
    """
    for part, rows in itertools.groupby(result["rows"], key=lambda row: row["part"]):
        print(f"\n{part}\n{tabulate([_flat(r) for r in rows], headers='keys', floatfmt='.4g')}")
    values = {name: v for name, v in result["summary"].items() if name != "spread"}
    lines = [(name, value, result["targets"].get(name)) for name, value in values.items()]
    print(f"\n{tabulate(lines, headers=('summary', 'found', 'target'), floatfmt='.4g')}")
    hardware = environment_record(modules)
    measured = {"versions": hardware.pop("versions"), "hardware": hardware}
    write_json(path, measured | preloaded_allocator() | dict(result))


def preloaded_allocator() -> dict[str, str]:
    """Name and settings of a memory allocator in LD_PRELOAD, without its path; may be empty."""
    names = [Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path]
    settings = os.environ.get("MALLOC_CONF", "")
    return {"preloaded": f"{', '.join(names)} {settings}".strip()} if names else {}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose fields with several numbers become one column each."""
    inner = {k: v if isinstance(v, Mapping) else {"": v} for k, v in row.items() if k != "part"}
    return {f"{k} {name}".strip(): value for k, v in inner.items() for name, value in v.items()}
