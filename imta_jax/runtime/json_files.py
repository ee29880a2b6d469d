"""Reading of JSON files that may be damaged, and appending to files of JSON lines.

A full disk or a lost machine leaves files that are empty or incomplete.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.errors import InputError
from imta_jax.runtime.files import append_or_restore, check_regular_file, read_file

_log = logging.getLogger(__name__)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file, which exists.
      remedy: how to make the file again, for the message.

    Raises:
      InputError: the file is empty or damaged, or holds no object.
      ExistingFileError, FilePermissionError: it is no regular file, or may not be read.
    """
    try:
        value = json.loads(read_file(path).decode())
    except ValueError as error:  # Also from bytes that are not UTF-8.
        reason = "is not valid JSON" if path.stat().st_size else "is empty"
        raise InputError(f"{path} {reason} ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object; found {value!r:.40}; {remedy}")
    return value


def read_json_or_none(path: Path, consequence: str) -> dict[str, Any] | None:
    """Reads a JSON object; None without the file, or with a warning if it is damaged.

    Args:
      path: the file.
      consequence: what happens without the file, for the warning.
    """
    if not path.exists():
        return None
    try:
        return read_json(path, consequence)
    except InputError as error:
        _log.warning("%s", error)
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a file of JSON lines; none without the file.

    Damaged lines are skipped with a warning. A killed process may leave an incomplete line.
    """
    if not path.exists():
        return []
    values = [_object_of(line) for line in read_file(path).split(b"\n") if line]
    records = [value for value in values if value is not None]
    if len(records) < len(values):
        damaged = len(values) - len(records)
        _log.warning("%s: %d of %d lines are damaged and skipped", path, damaged, len(values))
    return records


def _object_of(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends an object as one line; creates the file and its folder.

    After a failed write the file is truncated to its previous length. An incomplete last line is
    ended first.

    Raises:
      ExistingFileError: it is a folder or a pipe.
      OSError: the file cannot be written.
    """
    if path.exists():
        check_regular_file(path)
    start = "" if not path.exists() or _ends_with_newline(path) else "\n"
    append_or_restore(path, (start + json.dumps(value) + "\n").encode())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
