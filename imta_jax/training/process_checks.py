"""Checks that processes of a run or study have the same settings and data, and share its folder.

With different settings they would wait for each other forever, or train a network on other images
than the log names.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from imta_jax.config import RunConfig
from imta_jax.data.fingerprint import PATH_FIELDS, READER_FIELDS, fingerprint_differences
from imta_jax.errors import InputError
from imta_jax.runtime.agreement import from_first_process, raise_in_all_processes
from imta_jax.runtime.config_diff import differing_fields, to_json_types
from imta_jax.runtime.lock import lock_owner

_WAIT_SECONDS = 60  # Network file systems may show a new file to other hosts after a while.


def check_same_settings(
    mode: str, configs: Mapping[str, RunConfig], others: Mapping[str, Any] | None = None
) -> None:
    """Checks that all processes were started with the same mode and configs.

    Paths of the data and fields that affect how it is read may differ between hosts.

    Args:
      mode: value of `--mode`.
      configs: config of each run, by the name for messages.
      others: other settings by name, of JSON types.

    Raises:
      InputError: in all processes; lists the fields with both values.
    """
    settings = {"--mode": mode, **(others or {})}
    settings |= {name: _compared_fields(config) for name, config in configs.items()}
    first = from_first_process(settings)
    differences = [
        f"{name}: {expected!r} in process 0, {value!r} in process {jax.process_index()}"
        for part in sorted(settings.keys() | first.keys())
        for name, expected, value in differing_fields(first.get(part), settings.get(part), part)
    ]
    _raise_if_different("the flags differ; start all processes with the same flags", differences)


def _compared_fields(config: RunConfig) -> dict[str, Any]:
    fields = to_json_types(config.to_dict())
    for name in (*PATH_FIELDS, *READER_FIELDS):  # The data is compared by its fingerprint.
        fields["data"].pop(name)
    return fields


def check_same_data_in_all(data_fingerprint: Mapping[str, Any]) -> None:
    """Checks that all processes have loaded the same data.

    Args:
      data_fingerprint: return value of `data.fingerprint.fingerprint`.

    Raises:
      InputError: in all processes; lists the splits that differ.
    """
    first = from_first_process(dict(data_fingerprint))
    differences = fingerprint_differences(first, data_fingerprint)
    processes = f"process 0 (before) and process {jax.process_index()} (now)"
    problem = f"config.data.source: {processes} have other data; copy the same files to all hosts"
    _raise_if_different(problem, differences)


def check_folder_is_shared(workdir: Path) -> None:
    """Checks that all processes see the folder that process 0 has locked.

    Raises:
      InputError: in all processes; names a process that does not see it.
    """
    if jax.process_count() == 1:
        return
    expected = from_first_process(lock_owner(workdir))
    deadline = time.monotonic() + _WAIT_SECONDS
    while lock_owner(workdir) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    missing = [] if lock_owner(workdir) == expected else [f"it sees other files in {workdir}"]
    _raise_if_different("--workdir is not a folder that all processes share", missing)


def _raise_if_different(problem: str, differences: list[str]) -> None:
    """Raises an `InputError` in all processes if one has differences."""
    text = f"{problem}:\n  " + "\n  ".join(differences)
    raise_in_all_processes(InputError(text) if differences else None)
