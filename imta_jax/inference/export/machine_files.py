"""Files of an export for one kind of machine: measured stage times and compiled programs.

    profiles.json         stage times for numbers of workers, and the machine that was measured
    compiled.json         the machine that programs were compiled on
    compiled.zip          entries of JAX's compilation cache

Both are optional. They are used if their checksums and the description of the machine agree
(`runtime.machine`). Otherwise one line is logged, stages are estimated or measured, and programs
are compiled. Times affect the choice of segments and batch sizes, never a prediction.

Compiled programs are machine code, which no check can make safe. They are used only if the caller
trusts the folder, and are then copied to the compilation cache of this user. JAX finds an entry by
a hash of its program, the compiler's options, versions and the device: an entry of another program
is not found. The entries hold serialized executables of XLA and no pickle.
"""

import contextlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.inference.engine.profile import StageProfile
from imta_jax.inference.export import folder as export_folder
from imta_jax.runtime.files import write_atomically, write_json
from imta_jax.runtime.machine import differences, machine_identity
from imta_jax.runtime.parallel_compilation import cache_folder

_log = logging.getLogger(__name__)

PROFILES, COMPILED, PROGRAMS = "profiles.json", "compiled.json", "compiled.zip"
# Names of JAX's cache entries: the program's name and a SHA-256.
_ENTRY = re.compile(r"[\w.<>-]{1,120}-[0-9a-f]{64}-cache", re.ASCII)
# Fields of the machine that compiled programs do not depend on.
_NOT_OF_PROGRAMS = ("cores",)


def write_profiles(folder: Path, profiles: Iterable[StageProfile]) -> None:
    """Writes profiles that were measured on this machine."""
    stored = [profile.to_dict() for profile in profiles]
    content = {"machine": machine_identity(), "profiles": stored}
    write_json(folder / PROFILES, content, allow_nan=False)


def read_profiles(folder: Path, manifest: Mapping[str, Any]) -> tuple[StageProfile, ...]:
    """The profiles of an exported folder; none if they are of another machine or damaged.

    Args:
      folder: an export.
      manifest: its manifest.
    """
    content = _read_optional(folder, PROFILES)
    if content is None:
        return ()
    try:
        stored = json.loads(content)
        if different := differences(stored["machine"], machine_identity()):
            _log.warning(
                "%s: measured on another machine: %s; times are estimated", folder, different
            )
            return ()
        profiles = tuple(StageProfile.from_dict(fields) for fields in stored["profiles"])
        for profile in profiles:
            _check_profile(profile, manifest)
        return profiles
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        _log.warning(
            "%s is not valid (%s: %s); times are estimated", folder / PROFILES, kind, error
        )
        return ()


def _check_profile(profile: StageProfile, manifest: Mapping[str, Any]) -> None:
    for name, value, expected in [
        ("network", profile.network, manifest["name"]),
        ("number of stages", len(profile.stage_ms), len(manifest["stages"])),
        ("type of num_workers", type(profile.num_workers), int),
    ]:
        if value != expected:
            raise InputError(f"{name} must be {expected!r}; found {value!r}")


def write_compiled(folder: Path, cache: Path) -> None:
    """Writes the entries of a compilation cache of this machine.

    Args:
      folder: the export.
      cache: folder of `compiling_into`.
    """
    write_json(folder / COMPILED, {"machine": machine_identity()})
    with zipfile.ZipFile(folder / PROGRAMS, "w") as archive:  # the entries are compressed
        for path in sorted(cache.glob("*-cache")):
            if _ENTRY.fullmatch(path.name):
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def install_compiled(folder: Path) -> int:
    """Copies the compiled programs of a trusted export to the compilation cache of this user.

    Returns:
      The number of programs that the cache now holds; 0 if they are damaged, of another machine, or
      cannot be written.
    """
    description, programs = (_read_optional(folder, name) for name in (COMPILED, PROGRAMS))
    if description is None or programs is None:
        return 0
    if not jax.config.values["jax_enable_compilation_cache"]:
        _log.warning("%s: jax_enable_compilation_cache is off; compiling", folder)
        return 0
    try:
        recorded = json.loads(description)["machine"]
        different = differences(recorded, machine_identity(), ignored=_NOT_OF_PROGRAMS)
        if different:
            _log.warning("%s: compiled for another machine: %s; compiling", folder, different)
            return 0
        return _copy_entries(programs, cache_folder())
    except (KeyError, TypeError, NotImplementedError, *UNREADABLE_ARCHIVE) as error:
        kind = type(error).__name__
        _log.warning(
            "%s: compiled programs cannot be used (%s: %s); compiling", folder, kind, error
        )
        return 0


def _copy_entries(archive: bytes, cache: Path) -> int:
    """Writes the entries of an archive that the cache does not have; returns their number."""
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        names = entries.namelist()
        if unknown := [name for name in names if not _ENTRY.fullmatch(name)]:
            raise InputError(f"{PROGRAMS} has an entry {unknown[0]!r}; expected NAME-SHA256-cache")
        for name in names:
            if not (cache / name).exists():
                write_atomically(cache / name, entries.read(name))
    return len(names)


def has_compiled(folder: Path) -> bool:
    """Whether an export holds compiled programs."""
    return (folder / PROGRAMS).exists()


def _read_optional(folder: Path, name: str) -> bytes | None:
    """The content of a file after a check of its checksum; None if it is missing or damaged."""
    with contextlib.suppress(FileNotFoundError):
        content = (folder / name).read_bytes()
        if export_folder.has_checksum(folder, name, content):
            return content
        _log.warning("%s is damaged: its checksum differs; it is not used", folder / name)
    return None
