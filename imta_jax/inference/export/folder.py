"""The folder that an export is: its files, their checksums, and how it is written whole.

    manifest.json         what the network is, its exits, operating points and preprocessing
    stage_0.stablehlo ... one serialised program per stage (`jax.export`)
    weights.npz           the arrays that the programs take, bfloat16 as its bits in uint16
    SHA256SUMS            of all the others; `sha256sum -c SHA256SUMS` checks them too

Reading it runs no code from it: JSON, arrays without pickle, and programs as StableHLO.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT, VERSION = "imta_jax export", 1
MANIFEST, WEIGHTS, CHECKSUMS = "manifest.json", "weights.npz", "SHA256SUMS"
_AGAIN = "export it again, or copy it again from where it was made"


def program_name(stage: int) -> str:
    """The file of a stage's program, from 0."""
    return f"stage_{stage}.stablehlo"


@contextlib.contextmanager
def written_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that is sealed and takes the place of `folder` if all goes well.

    Args:
      folder: that will be there, whole, or not at all.
      overwrite: replaces an earlier export, and nothing else.

    Raises:
      FileExistsError: something is there that may not be replaced.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder, overwrite)
    # Beside it, as a rename is atomic only within one file system.
    partial, former = (
        folder.with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("partial", "former")
    )
    partial.mkdir(parents=True)
    try:
        yield partial
        _seal(partial)
        if folder.exists():
            folder.rename(former)
        partial.rename(folder)
    finally:
        if former.exists() and not folder.exists():
            former.rename(folder)
        for left_over in (partial, former):
            shutil.rmtree(left_over, ignore_errors=True)


def check_replaceable(folder: str | Path, overwrite: bool) -> None:
    """Refuses a folder that an export may not be written to.

    Raises:
      FileExistsError: it is there and is no export, or `overwrite` is False.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not _is_export(folder):
        raise FileExistsError(f"{folder} is there and is no earlier export; name another folder")
    if not overwrite:
        raise FileExistsError(
            f"{folder} holds an earlier export; name another folder, or ask to overwrite it"
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `manifest.json` says, once every file of the folder was found to be undamaged.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it is no export, of a newer format, or damaged: the first file that is, and how.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one that was exported")
    manifest = _parsed_manifest(folder)
    found = manifest["format_version"]
    if not isinstance(found, int) or found > VERSION:
        raise ValueError(
            f"{folder}: of format version {found}, and this imta_jax reads up to {VERSION}; "
            "install a newer one, or export again with this one"
        )
    needed = [MANIFEST, WEIGHTS, *(program_name(i) for i in range(len(manifest["stages"])))]
    _check_files(folder, needed)
    return manifest


def _parsed_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no {MANIFEST} in it; expected a folder that was exported")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: no JSON ({error}); {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not of an export; expected its format to be {FORMAT!r}")
    stages = manifest.get("stages")
    if "format_version" not in manifest or not isinstance(stages, list) or not stages:
        raise ValueError(f"{path} is damaged: no version or no stages; {_AGAIN}")
    return manifest


def _is_export(folder: Path) -> bool:
    try:
        _parsed_manifest(folder)
    except (OSError, ValueError):
        return False
    return True


def _seal(folder: Path) -> None:
    """Writes the checksums of all that lies there."""
    lines = [f"{_digest(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / CHECKSUMS).write_text("".join(lines))


def _check_files(folder: Path, needed: list[str]) -> None:
    """Each needed file has to be there, and to be what was sealed."""
    sealed = _read_checksums(folder)
    for name in needed:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; {_AGAIN}")
        found = _digest(path)
        if name not in sealed:
            raise ValueError(f"{folder / CHECKSUMS} is damaged: it does not name {name}; {_AGAIN}")
        if found != sealed[name]:
            raise ValueError(
                f"{path} is damaged or was changed ({path.stat().st_size} bytes): its SHA-256 "
                f"begins with {found[:12]}, and {CHECKSUMS} (unless that is what was damaged) says "
                f"{sealed[name][:12]}; {_AGAIN}"
            )


def _read_checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.is_file():
        raise ValueError(f"{path} is missing; {_AGAIN}")
    lines = path.read_bytes().decode(errors="replace").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    if not all(len(pair) == 2 and len(pair[0]) == 64 for pair in pairs):
        raise ValueError(f"{path} is damaged: no list of checksums; {_AGAIN}")
    return {name: digest for digest, name in pairs}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
