"""The records of a run in its folder, `config.json` and `dataset.json`, and their comparison.

A run that is resumed must have the recorded config and data.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.config import RunConfig
from imta_jax.data.fingerprint import PATH_FIELDS, READER_FIELDS, fingerprint_differences
from imta_jax.data.sources import can_be_moved, source_component
from imta_jax.errors import InputError
from imta_jax.runtime.config_diff import IGNORED_SECTIONS, config_differences
from imta_jax.runtime.files import write_json
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.training.init_from import began_with


def recorded_config(workdir: Path) -> RunConfig | None:
    """The config of the run in the folder; None without one, or if the file is damaged.

    Raises:
      InputError: the config has fields of another version.
    """
    path = workdir / "config.json"
    fields = read_json_or_none(path, "it is written again, and the config is not compared")
    if fields is None:
        return None
    try:
        return RunConfig.from_mapping(fields)
    except InputError as error:
        raise InputError(
            f"{path} is of another version ({error}); use that version, or another --workdir"
        ) from error


def recorded_data(workdir: Path) -> dict[str, Any]:
    """The fingerprint in `dataset.json` of the folder's run; empty if there is no run.

    Runs of older versions have no `dataset.json` and are not checked.
    """
    if not (workdir / "config.json").exists():
        return {}
    path = workdir / "dataset.json"
    return read_json_or_none(path, "it is written again, and the data is not compared") or {}


def record_start(
    config: RunConfig, data_fingerprint: Mapping[str, Any], workdir: Path, mode: str
) -> None:
    """Deletes temporary files of a killed process; writes `dataset.json` and `config.json`.

    Args:
      config: the config of this launch.
      data_fingerprint: return value of `data.fingerprint.fingerprint`.
      workdir: folder of the run; no other process writes to it.
      mode: see `run`.

    Raises:
      InputError: see `check_same_config`.
    """
    for temporary in workdir.rglob(".*.partial"):
        if not temporary.is_dir():  # an export may be writing that folder
            temporary.unlink()
    # config.json is written last: if it exists, the run has begun with this data.
    component = source_component(config.data.source)
    source = {"source": component} if component else {}
    write_json(workdir / "dataset.json", {**data_fingerprint, **source})
    # Read again: another process may have begun a run in the meantime.
    recorded = recorded_config(workdir)
    check_same_config(config, recorded, workdir, mode)
    if recorded is None:
        write_json(workdir / "config.json", config.to_dict())


def check_same_config(
    config: RunConfig, recorded: RunConfig | None, workdir: Path, mode: str
) -> None:
    """Checks that the folder's run began with the same config.

    A field that an older run did not record has its default. Sections that change results only by
    rounding may differ, and so may the section of the evaluation with mode "evaluate". The fields
    of `READER_FIELDS` may differ, and so may the paths of the data, whose content is compared. The
    initial parameters may have another path, or be missing after the run has begun with them.

    Args:
      config: the config of this launch.
      recorded: return value of `recorded_config`.
      workdir: folder of the run.
      mode: see `run`.

    Raises:
      InputError: lists the fields that differ, with both values.
    """
    if recorded is None:
        return
    ignored = IGNORED_SECTIONS if mode != "evaluate" else (*IGNORED_SECTIONS, "evaluation")
    recorded_fields, current_fields = (
        {name: part for name, part in run.to_dict().items() if name not in ignored}
        for run in (recorded, config)
    )
    ignored_data_fields = list(READER_FIELDS)
    if recorded_data(workdir):
        ignored_data_fields += ["data_dir", "manual_dir"]
        if all(can_be_moved(run.data.source) for run in (recorded, config)):
            ignored_data_fields.append("source")
    sources = _initial_parameters(recorded, config, workdir)
    for fields, initial in zip((recorded_fields, current_fields), sources, strict=True):
        fields["phase_one"] = {**fields["phase_one"], "init_from": initial}
        fields["data"] = {
            name: value for name, value in fields["data"].items() if name not in ignored_data_fields
        }
    differences = config_differences(recorded_fields, current_fields)
    if not differences:
        return
    remedy = "use another --workdir, or the same values"
    if differences == evaluation_differences(config, recorded):
        remedy += ", or evaluate the run again with --mode=evaluate"
    raise InputError(
        f"{workdir} belongs to a run with another config; {remedy}:\n  " + "\n  ".join(differences)
    )


def _initial_parameters(recorded: RunConfig, config: RunConfig, workdir: Path) -> tuple[str, str]:
    """`phase_one.init_from` of both runs, equal if the initial parameters are equal."""
    sources = recorded.phase_one.init_from, config.phase_one.init_from
    before, now = map(_resolved, sources)
    same = began_with(sources[1], workdir / "phase_one") if all(sources) else None
    if same is None:
        return before, now
    return (before, before) if same else (before, f"{now} with other arrays")


def _resolved(path: str) -> str:
    """The path without `~` and links, if it exists."""
    expanded = os.path.expanduser(path)
    return os.path.realpath(expanded) if os.path.exists(expanded) else path


def data_paths(config: RunConfig) -> tuple[str, ...]:
    """The paths of the data."""
    return tuple(getattr(config.data, name) for name in PATH_FIELDS)


def evaluation_differences(config: RunConfig, recorded: RunConfig) -> list[str]:
    """One line per field of `config.evaluation` that differs."""
    recorded_fields, current_fields = (run.to_dict()["evaluation"] for run in (recorded, config))
    return config_differences(recorded_fields, current_fields, "config.evaluation")


def check_same_data(
    recorded: Mapping[str, Any], data_fingerprint: Mapping[str, Any], workdir: Path
) -> None:
    """Checks that the folder's run began with the same data.

    Args:
      recorded: return value of `recorded_data`.
      data_fingerprint: return value of `data.fingerprint.fingerprint`.
      workdir: folder of the run, for the message.

    Raises:
      InputError: lists the differences.
    """
    if differences := fingerprint_differences(recorded, data_fingerprint):
        raise InputError(
            f"{workdir} belongs to a run that began with other data; restore that data, or use"
            " another --workdir:\n  " + "\n  ".join(differences)
        )
