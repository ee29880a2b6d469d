"""The manifest of an export for `run.py`: read and checked, with the checksums of the files.

Exports have a copy of this module; see `runner_files`. `folder.read_manifest` is the check of this
package, which needs the programs.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from imta_jax.errors import InputError

_MANIFEST, _CHECKSUMS = "manifest.json", "SHA256SUMS"
_READ = re.compile(r"manifest\.json|weights\.npz|(stage|exit_rule)_\d+\.(onnx|stablehlo)")
_COPY_AGAIN = "copy the export again"


def read_manifest(folder: Path, newest: int, stages: str) -> dict[str, Any]:
    """Reads `manifest.json`, and checks its fields and the files of the folder.

    Args:
      folder: the export.
      newest: the newest format version that the runner reads.
      stages: the field with one entry per stage.

    Raises:
      InputError: the manifest is damaged or of a newer format, or a file is missing or has another
        checksum than in `SHA256SUMS`.
    """
    path = folder / _MANIFEST
    for name in (_MANIFEST, _CHECKSUMS):  # the reading of a pipe would block
        if (folder / name).exists() and not (folder / name).is_file():
            raise InputError(f"{folder / name} is not a regular file; {_COPY_AGAIN}")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format_version"]
        if type(version) is int and version > newest:
            raise InputError(
                f"{path}: format_version is {version}; this run.py reads up to {newest}; use "
                "the run.py of that export"
            )
        _check_fields(path, manifest, len(manifest[stages]))
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged ({reason}); {_COPY_AGAIN}") from error
    _check_files(folder)
    return manifest


def check_class_names(manifest: dict[str, Any], num_classes: int) -> None:
    """Checks that each class of the network has a name.

    Args:
      manifest: content of `manifest.json`.
      num_classes: number of logits of the last stage.

    Raises:
      InputError: the numbers differ.
    """
    count = len(manifest["class_names"])
    if count != num_classes:
        raise InputError(
            f"{_MANIFEST}: number of class_names is {count}; the programs expect {num_classes}; "
            f"{_COPY_AGAIN}"
        )


def _check_fields(path: Path, manifest: dict[str, Any], num_stages: int) -> None:
    points = [
        (point["budget"], point["validation_top1"], *point["thresholds"])
        for point in manifest["operating_points"]
    ]
    names = manifest["class_names"]
    for field, valid in [
        ("format_version", type(manifest["format_version"]) is int),
        ("number of stages", num_stages > 0),
        ("operating_points", points and all(len(point) == 2 + num_stages for point in points)),
        ("operating_points", all(_is_number(value) for point in points for value in point)),
        ("class_names", isinstance(names, list) and all(isinstance(name, str) for name in names)),
        ("image_shape", [type(size) for size in manifest["image_shape"]] == [int] * 3),
        ("preprocessing", isinstance(manifest["preprocessing"], dict)),
    ]:
        if not valid:
            raise InputError(f"{path} is damaged ({field} is invalid); {_COPY_AGAIN}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_files(folder: Path) -> None:
    """Compares the files that `run.py` reads with the checksums of the folder."""
    lines = (folder / _CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split("  ", 1) for line in lines if "  " in line]
    checksums = {name: digest for digest, name in pairs}
    if _MANIFEST not in checksums:
        raise InputError(f"{folder / _CHECKSUMS} is damaged; {_COPY_AGAIN}")
    for name, expected in checksums.items():
        path = folder / name
        if not _READ.fullmatch(name):
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing; {_COPY_AGAIN}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise InputError(f"{path} is damaged or was changed; {_COPY_AGAIN}")
