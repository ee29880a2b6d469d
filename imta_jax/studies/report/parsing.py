"""Reads and checks `study.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.errors import InputError, MissingFileError
from imta_jax.runtime.json_files import read_json
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord

_REQUIRED = ("study", "preset", "environment", "arms", "seeds", "rows")
_REQUIRED_IN_ROW = ("schedule", "exits", "budget_curve", "validation_curve")


def parse_study(study: object, source: str = "the study") -> StudyRecord:
    """Checks the content of a `study.json` and converts it to a record.

    Args:
      study: content of a `study.json`.
      source: name of its origin for error messages.

    Returns:
      The record.

    Raises:
      ValueError: it is not a study, or a row is incomplete. The message names the value.
    """
    expected = "expected a study.json written by `python launch.py --mode=study`"
    if not isinstance(study, Mapping):
        raise InputError(f"{source} is not a study: {expected}, an object; found {_kind(study)}")
    missing = [name for name in _REQUIRED if name not in study]
    if missing:
        keys = ", ".join(map(str, study)) or "nothing"
        raise InputError(
            f"{source} is not a study: missing {', '.join(missing)}; found {keys}; {expected}"
        )
    variants = tuple(_variant(name, entry) for name, entry in study["arms"].items())
    for row in study["rows"]:
        _check_row(row, {variant.name for variant in variants}, source)
    return StudyRecord(
        name=study["study"],
        preset=str(study["preset"]),
        dataset=study.get("dataset"),
        environment=study["environment"] or {},
        baseline=study.get("baseline"),
        variants=variants,
        seeds=tuple(study["seeds"]),
        rows=tuple(study["rows"]),
    )


def load_study(path: str | Path) -> StudyRecord:
    """Reads and checks a `study.json`; errors as in `read_study` and `parse_study`."""
    return parse_study(read_study(path), str(path))


def read_study(path: str | Path) -> dict[str, Any]:
    """Reads a `study.json` without checking its fields.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it holds no JSON object.
    """
    path, remedy = Path(path), "write it again with `python launch.py --mode=study`"
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise MissingFileError(
            f"expected a study.json at {path}, found {kind}; "
            "`python launch.py --mode=study --workdir=DIR ...` writes DIR/STUDY/study.json"
        )
    return read_json(path, remedy)


def _kind(value: object) -> str:
    return f"{'a list' if isinstance(value, list) else type(value).__name__}: {str(value)[:60]}"


def _variant(name: str, entry: Mapping[str, Any]) -> VariantRecord:
    techniques = entry.get("techniques")
    return VariantRecord(
        name=name,
        label=str(entry.get("label") or name),
        network=str(entry.get("network") or ""),
        techniques=None if techniques is None else frozenset(techniques),
        overrides=entry.get("overrides") or {},
        costs=tuple(entry.get("costs") or ()),
        against=str(entry.get("against") or ""),
    )


def _check_row(row: Mapping[str, Any], names: set[str], source: str) -> None:
    location = f"{source}, row of variant {row.get('arm')!r}, seed {row.get('seed')!r}"
    if row.get("arm") not in names:
        raise InputError(f"{location}: unknown variant; the study has {', '.join(sorted(names))}")
    if row.get("status") not in ("done", "failed"):
        raise InputError(f"{location}: status must be done or failed; found {row.get('status')!r}")
    missing = [name for name in _REQUIRED_IN_ROW if not row.get(name)]
    if row["status"] == "done" and missing:
        raise InputError(f"{location}: status is done, but the row has no {', '.join(missing)}")
