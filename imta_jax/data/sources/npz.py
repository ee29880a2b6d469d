"""Arrays in an .npz file; does not need TensorFlow."""

import errno
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from imta_jax.data.source_validation import SourceData, SourceSplit
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.errors import UNREADABLE_ARCHIVE, FilePermissionError, InputError, MissingFileError
from imta_jax.runtime.files import check_regular_file
from imta_jax.runtime.paths import local_path, reason_missing

# NumPy takes a file that does not start like this for pickled data, also if an archive follows.
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_EXPECTED = "train_images, train_labels, test_images, test_labels"


def accepts(source: str) -> bool:
    """Whether the source ends in .npz."""
    return source.endswith(".npz")


def read(request: SourceRequest) -> SourceData:
    """Reads the file; see `sources.load_source`."""
    return read_npz(local_path("config.data.source", request.source), request)


def read_npz(path: Path, request: SourceRequest) -> SourceData:
    """Reads SPLIT_images and SPLIT_labels of each split and, if present, class_names.

    Args:
      path: the file.
      request: its split fields choose the splits.

    Raises:
      FileNotFoundError: the file does not exist.
      PermissionError: it may not be read.
      ValueError: it is a folder, is not an .npz archive, is damaged, lacks an array, or holds a
        pickled array. Nothing is unpickled, since that would run code from the file.
    """
    _check_readable(path)
    try:
        opened = np.load(path, allow_pickle=False)
    except UNREADABLE_ARCHIVE as error:
        raise _damaged(path, "the archive", error) from error
    with opened as archive:
        chosen = choose_splits(request, _split_names(archive, path), str(path))
        splits = {
            role: SourceSplit(
                _member(archive, f"{name}_images", path), _member(archive, f"{name}_labels", path)
            )
            for role, name in chosen.items()
        }
        names = _member(archive, "class_names", path) if "class_names" in archive.files else None
    return SourceData(path.stem, splits, _class_names(names, path))


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise InputError(
            f"config.data.source is {path}, which is a folder, expected an .npz file; rename the"
            " folder if it holds images"
        )
    if not path.exists():
        raise MissingFileError(
            f"config.data.source is {path.absolute()}, but {reason_missing(path)}"
        )
    check_regular_file(path)
    if not os.access(path, os.R_OK):
        raise FilePermissionError(errno.EACCES, "no read permission; run chmod u+r", str(path))
    with path.open("rb") as file:
        starts_like_zip = file.read(len(_ZIP_STARTS[0])) in _ZIP_STARTS
    if not starts_like_zip or not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive or is truncated; write it by np.savez")


def _split_names(archive: np.lib.npyio.NpzFile, path: Path) -> list[str]:
    """Names of the splits; raises a ValueError if images or labels of a split are missing."""
    images = [name.removesuffix("_images") for name in archive.files if name.endswith("_images")]
    labels = [name.removesuffix("_labels") for name in archive.files if name.endswith("_labels")]
    missing = [f"{name}_labels" for name in images if name not in labels]
    missing += [f"{name}_images" for name in labels if name not in images]
    if missing or not images:
        raise InputError(
            f"{path} lacks {', '.join(missing) or _EXPECTED}; found: {', '.join(archive.files)};"
            f" expected: {_EXPECTED} and, if the classes have names, class_names"
        )
    return images


def _member(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        value: object = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise _damaged(path, key, error) from error
        raise InputError(
            f"{path}: {key} is pickled, which is not supported because unpickling can run code;"
            " save a plain array (images of one shape as uint8, names as strings)"
        ) from error
    except (OSError, *UNREADABLE_ARCHIVE) as error:
        raise _damaged(path, key, error) from error
    if isinstance(value, np.ndarray):
        return value
    # NumPy returns the bytes of a member that does not start like an array.
    size = len(value) if isinstance(value, bytes) else 0
    raise _damaged(path, key, f"{size} bytes that are not a NumPy array" if size else "it is empty")


def _damaged(path: Path, key: str, reason: object) -> InputError:
    return InputError(f"{path}: {key} is damaged ({reason}); write or download the file again")


def _class_names(names: np.ndarray | None, path: Path) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.size == 0 or names.dtype.kind != "U":
        raise InputError(
            f"{path}: class_names is {names.dtype} of shape {names.shape}, expected one string per"
            " class"
        )
    name, count = Counter(names.tolist()).most_common(1)[0]
    if count > 1 or not all(names):
        problem = f"{count} classes named {name!r}" if count > 1 else "a class without a name"
        raise InputError(f"{path}: class_names has {problem}; expected a unique name per class")
    return tuple(names.tolist())
