"""Arrays of an .npz file; needs no TensorFlow."""

import errno
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from imta_jax.data.source_validation import SourceData, SourceSplit
from imta_jax.data.sources.request import SourceRequest, choose_splits

_EXPECTED = "train_images, train_labels, test_images, test_labels"


def accepts(source: str) -> bool:
    """Whether it ends in .npz."""
    return source.endswith(".npz")


def read(request: SourceRequest) -> SourceData:
    """See `sources.load_source`."""
    return read_npz(Path(request.source).expanduser(), request)


def read_npz(path: Path, request: SourceRequest) -> SourceData:
    """Reads SPLIT_images and SPLIT_labels of each split and, if there, class_names.

    Raises:
      FileNotFoundError: there is no such file.
      IsADirectoryError: it is a folder.
      PermissionError: it may not be read.
      ValueError: not an .npz archive, damaged, an array missing, or an array that is pickled:
        nothing is ever unpickled, since that would run code from the file.
    """
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR,
            "a folder, expected an .npz file; give a folder of images another name",
            path,
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; give the path of an existing .npz")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, f"this user may not read {path}: chmod u+r, say")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz archive (or is cut short); write it by np.savez")
    with np.load(path, allow_pickle=False) as archive:
        chosen = choose_splits(request, _splits_of(archive, path), str(path))
        splits = {
            part: SourceSplit(
                _member(archive, f"{name}_images", path), _member(archive, f"{name}_labels", path)
            )
            for part, name in chosen.items()
        }
        names = _member(archive, "class_names", path) if "class_names" in archive.files else None
    return SourceData(path.stem, splits, _class_names(names, path))


def _splits_of(archive: np.lib.npyio.NpzFile, path: Path) -> list[str]:
    """Names of the splits; refuses an archive with half of one, or without any."""
    names = [name.removesuffix("_images") for name in archive.files if name.endswith("_images")]
    halves = [name.removesuffix("_labels") for name in archive.files if name.endswith("_labels")]
    missing = [f"{name}_labels" for name in names if name not in halves]
    missing += [f"{name}_images" for name in halves if name not in names]
    if missing or not names:
        raise ValueError(
            f"{path} lacks {', '.join(missing) or _EXPECTED}; found: {', '.join(archive.files)};"
            f" expected: {_EXPECTED} and, if the classes have names, class_names"
        )
    return names


def _member(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return archive[key]
    except ValueError as error:
        raise ValueError(
            f"{path}: {key} cannot be read without unpickling, which is refused; save it as a plain"
            " array (images of one shape as uint8, names as strings)"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: {key} is damaged ({error}); make or fetch it again") from error


def _class_names(names: np.ndarray | None, path: Path) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.size == 0 or names.dtype.kind != "U":
        raise ValueError(
            f"{path}: class_names is {names.dtype} of shape {names.shape}, expected one string per"
            " class"
        )
    name, count = Counter(names.tolist()).most_common(1)[0]
    if count > 1 or not all(names):
        found = f"{count} classes called {name!r}" if count > 1 else "a class without a name"
        raise ValueError(f"{path}: class_names has {found}; give each a name of its own")
    return tuple(names.tolist())
