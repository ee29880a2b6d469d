"""The folder of an exported network: its files, their checksums, and atomic writing.

    manifest.json         exits, operating points, preprocessing, versions
    stage_0.stablehlo ... one serialized program per stage (`jax.export`)
    images_last_0.stablehlo the same for larger batches on a CPU, with the images on the last axis
    exit_rule_0.stablehlo one per exit, for exit rules other than the confidence (version 3)
    weights.npz           the arguments of the programs; bfloat16 arrays as uint16 bits, int8
                          arrays with their scales
    golden.npz            synthetic images and their logits, checked at loading (from version 2)
    README.md             the model card
    run.py                classifies images without this package; `stablehlo_runner`
    image_reading/        reads image files for `run.py`; `runner_files`
    profiles.json         stage times of one kind of machine, optional; `machine_files`
    compiled.json, compiled.zip   compiled programs for one kind of machine, optional
    SHA256SUMS            checksums of the other files; `sha256sum -c SHA256SUMS` checks them

Loading runs no code from the folder: it reads JSON, arrays without pickle, and StableHLO programs.
Compiled programs are an exception, which the caller must ask for (`trust_compiled`).
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imta_jax.errors import (
    ExistingFileError,
    InputError,
    MissingFileError,
    StorageError,
    UserError,
)
from imta_jax.inference.export.runner_files import READING, RUNNER
from imta_jax.runtime.write_errors import write_remedy

# Version 2 describes the preprocessing of images completely; version 1 had `resize`, `mean`, `std`.
FORMAT, VERSION = "imta_jax export", 2
ONNX_FORMAT = "imta_jax ONNX export"
SAFETENSORS_FORMAT = "imta_jax safetensors export"
_FORMATS = (FORMAT, ONNX_FORMAT, SAFETENSORS_FORMAT)
RULE_VERSION = 3  # Version of folders with an exit rule other than the confidence.
MANIFEST, WEIGHTS, CHECKSUMS = "manifest.json", "weights.npz", "SHA256SUMS"
GOLDEN, CARD = "golden.npz", "README.md"
_EXPORT_AGAIN = "export the network again, or copy the folder again"


def program_name(stage: int) -> str:
    """File name of the program of a stage, from 0."""
    return f"stage_{stage}.stablehlo"


def images_last_name(stage: int) -> str:
    """File name of the program of a stage, from 0, for larger batches on a CPU."""
    return f"images_last_{stage}.stablehlo"


def scale_name(weight: str) -> str:
    """Name of the scale of an int8 array of `weights.npz`."""
    return f"{weight}.scale"


def rule_name(exit_index: int) -> str:
    """File name of the exit rule's program at an exit, from 0."""
    return f"exit_rule_{exit_index}.stablehlo"


@contextlib.contextmanager
def replacing_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that replaces `folder` when the block ends without an error.

    Writes the checksums of its files before that.

    Args:
      folder: the folder to write.
      overwrite: whether an earlier export may be replaced.

    Raises:
      FileExistsError: see `check_replaceable`.
      StorageError: the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder, overwrite)
    _delete_leftovers(folder)
    # In the same parent, because a rename is atomic only within a file system.
    partial, former = (
        folder.with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("partial", "former")
    )
    try:
        partial.mkdir(parents=True)
        yield partial
        write_checksums(partial)
        if folder.exists():
            folder.rename(former)
        partial.rename(folder)
    except OSError as error:
        # A failed write names no file.
        if isinstance(error, UserError) or not _is_below(error.filename, partial):
            raise
        raise StorageError(
            error.errno,
            f"the export cannot be written to {folder} ({error.strerror or error});"
            f" {write_remedy(error.errno)}, or choose another folder",
        ) from error
    finally:
        if former.exists() and not folder.exists():
            former.rename(folder)
        for leftover in (partial, former):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_below(name: Any, folder: Path) -> bool:
    """Whether an OSError's file name is in a folder, or there is none."""
    return name is None or os.fsdecode(name).startswith(str(folder))


def _delete_leftovers(folder: Path) -> None:
    """Deletes temporary folders of processes that were killed."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        process = leftover.name.split(".")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(process: int) -> bool:
    """Whether this machine has a process of this number; True if that is not known."""
    if os.name != "posix":  # elsewhere signal 0 ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def check_replaceable(folder: str | Path, overwrite: bool) -> None:
    """Checks that an export may be written to a folder.

    Raises:
      FileExistsError: the folder exists and is not an export, or `overwrite` is False.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not _is_export(folder):
        raise ExistingFileError(
            f"{folder} exists and is not an earlier export; choose another folder"
        )
    if not overwrite:
        raise ExistingFileError(
            f"{folder} holds an earlier export; choose another folder or set overwrite"
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads `manifest.json` and checks every file of the folder against its checksum.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the folder is not an export, is of a newer format version, or is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist; expected the folder of an export")
    manifest = _parse_manifest(folder)
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: format is {manifest['format']!r}; expected {FORMAT!r}, the format "
            '"stablehlo" of the export command'
        )
    version = manifest["format_version"]
    if type(version) is not int or not 1 <= version <= RULE_VERSION:
        raise InputError(
            f"{folder}: format_version is {version}, expected 1 to {RULE_VERSION}; install a newer "
            "imta_jax, or export the network again with this one"
        )
    exits = range(len(manifest["stages"]))
    required = [MANIFEST, WEIGHTS, *map(program_name, exits)]
    if "images_last" in manifest:
        required += map(images_last_name, exits)
    if "exit_rule" in manifest:
        required += map(rule_name, exits)
    if version > 1 or (folder / GOLDEN).exists():
        required.append(GOLDEN)
    _verify_checksums(folder, required)
    return manifest


def has_checksum(folder: Path, name: str, content: bytes) -> bool:
    """Whether a file has the checksum of `SHA256SUMS`.

    Raises:
      ValueError: there are no checksums, or they are damaged.
    """
    return _read_checksums(folder).get(name) == hashlib.sha256(content).hexdigest()


def identity(folder: Path) -> tuple[int, bytes] | None:
    """A value that changes when another export replaces the one in a folder; None without one."""
    try:
        return folder.stat().st_ino, (folder / CHECKSUMS).read_bytes()
    except OSError:
        return None


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all other files in the folder and the folders in it."""
    names = sorted(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        key=str.lower,
    )
    lines = [f"{_digest(folder / name)}  {name}\n" for name in names if name != CHECKSUMS]
    (folder / CHECKSUMS).write_text("".join(lines))


def _parse_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        is_run = (folder / "results.json").is_file()
        remedy = f"; {folder} is a run: imta-jax export {folder} FOLDER" if is_run else ""
        raise InputError(f"{path} does not exist; expected the folder of an export{remedy}")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: not JSON ({error}); {_EXPORT_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in _FORMATS:
        raise InputError(f"{path} is not the manifest of an export: expected format {FORMAT!r}")
    if manifest["format"] != FORMAT:
        return manifest
    stages = manifest.get("stages")
    if "format_version" not in manifest or not isinstance(stages, list) or not stages:
        raise InputError(f"{path} is damaged: no format_version or no stages; {_EXPORT_AGAIN}")
    return manifest


def _is_export(folder: Path) -> bool:
    try:
        _parse_manifest(folder)
    except (OSError, ValueError):
        return False
    return True


def _verify_checksums(folder: Path, required: list[str]) -> None:
    """Checks that each required file exists and has the checksum of `SHA256SUMS`."""
    checksums = _read_checksums(folder)
    # Earlier exports have none of these.
    added = [name for name in checksums if name in (CARD, RUNNER) or name.startswith(f"{READING}/")]
    for name in [*required, *added]:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing; {_EXPORT_AGAIN}")
        digest = _digest(path)
        if name not in checksums:
            raise InputError(
                f"{folder / CHECKSUMS} is damaged: it does not list {name}; {_EXPORT_AGAIN}"
            )
        if digest != checksums[name]:
            raise InputError(
                f"{path} or {CHECKSUMS} is damaged or was changed ({path.stat().st_size} bytes): "
                f"SHA-256 {digest[:12]}..., expected {checksums[name][:12]}...; {_EXPORT_AGAIN}"
            )


def _read_checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.is_file():
        raise InputError(f"{path} is missing; {_EXPORT_AGAIN}")
    lines = path.read_bytes().decode(errors="replace").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    if not all(len(pair) == 2 and len(pair[0]) == 64 for pair in pairs):
        raise InputError(f"{path} is damaged: not a list of checksums; {_EXPORT_AGAIN}")
    return {name: digest for digest, name in pairs}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
