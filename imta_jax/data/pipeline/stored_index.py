"""Stored indexes of encoded images: one .npz file per split, named by a hash of its files."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from imta_jax.data.decoding.header import POLICY_VERSION
from imta_jax.data.decoding.refusal import Refusal
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.runtime.files import check_regular_file, replacing
from imta_jax.runtime.paths import without_file_scheme

_log = logging.getLogger(__name__)
_FORMAT = 2  # Format of stored indexes; after a change they are computed again.
_KINDS = {"files": "S", "is_jpeg": "b"}  # Kinds of the arrays that are not integers.
# What a damaged .npz file or one with other arrays raises.
_DAMAGED = (OSError, KeyError, IndexError, *UNREADABLE_ARCHIVE)


class Indexed(NamedTuple):
    """All N encoded images of a split, including those that are rejected.

    Attributes:
      images: the images; their orientation is that of the EXIF data.
      labels: class of each image, from 0.
      refusal: values of `Refusal`.
      digest: hashes of the files.
      path: the file of the stored index; "" if it is not stored.
    """

    images: EncodedImages
    labels: Int32[np.ndarray, " N"]
    refusal: UInt8[np.ndarray, " N"]
    digest: Int64[np.ndarray, " N"]
    path: str = ""


def load_or_scan(
    scan: Callable[[], Indexed],
    inspect_again: Callable[[Indexed], Indexed],
    *,
    files: np.ndarray,
    count: int | None,
    key: Any,
    index_dir: str,
    split_name: str,
) -> Indexed:
    """Loads the index that is stored under `key`, or computes and stores it.

    Args:
      scan: computes the index.
      inspect_again: inspects the rejected images of a loaded index again, since the cause may have
        been temporary; returns the same object if nothing changed.
      files: bytes [F], the paths of the files.
      count: number of images; None if it is unknown before the files are read.
      key: a value that changes whenever the images change; its repr names the file.
      index_dir: folder of stored indexes; "" stores nothing.
      split_name: the split, for messages.
    """
    if not index_dir:
        return scan()
    folder = without_file_scheme(index_dir)
    if "://" in folder:
        raise InputError(f"config.data.index_dir must be a local folder; found {index_dir!r}")
    name = hashlib.sha256(repr((_FORMAT, POLICY_VERSION, key)).encode()).hexdigest()[:24]
    try:
        path = Path(folder).expanduser() / f"{name}.npz"
    except RuntimeError as error:  # the home folder is unknown
        _log.warning("cannot store the index of %s in %s (%s)", split_name, index_dir, error)
        return scan()
    loaded = _loaded(path, files, count)
    if loaded is None:
        _log.info("reading every image of %s once, to store an index in %s", split_name, path)
    indexed = scan() if loaded is None else inspect_again(loaded)
    if indexed is loaded:
        return indexed
    try:
        _save(path, indexed)
    except OSError as error:
        _log.warning("cannot store the index of %s in %s (%s)", split_name, path, error)
        return indexed
    return indexed._replace(path=str(path))


def _loaded(path: Path, files: np.ndarray, count: int | None) -> Indexed | None:
    try:
        indexed = _load(path)
        _check_arrays(indexed)
        _check_values(indexed, files, len(indexed.labels) if count is None else count)
        return indexed
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        _log.warning("cannot read the index %s (%s); computing it again", path, error)
        return None


def _save(path: Path, indexed: Indexed) -> None:
    images = {name: getattr(indexed.images, name) for name in _image_fields()}
    others = {name: getattr(indexed, name) for name in _other_fields()}
    # Several processes may write the same index.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **others, **images)


def _load(path: Path) -> Indexed:
    check_regular_file(path)
    # If NumPy opened the file, it would not close it after an error.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        images = {name: archive[name] for name in _image_fields()}
        images["feature"] = str(images["feature"])
        others = {name: archive[name] for name in _other_fields()}
    return Indexed(EncodedImages(**images), **others, path=str(path))


def _check_arrays(indexed: Indexed) -> None:
    """Raises an InputError unless the arrays have the kinds and shapes of an index of N images."""
    images, count = indexed.images, len(indexed.labels)
    arrays = {name: getattr(images, name) for name in _image_fields() if name != "feature"}
    arrays |= {name: getattr(indexed, name) for name in _other_fields()}
    for name, array in arrays.items():
        shape = {"files": array.shape[:1], "sizes": (count, 2)}.get(name, (count,))
        if array.shape != shape or array.dtype.kind not in _KINDS.get(name, "iu"):
            raise InputError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    if ((images.file_id < 0) | (images.file_id >= len(images.files))).any():
        raise InputError(f"file_id is not below {len(images.files)}, the number of files")


def _check_values(indexed: Indexed, files: np.ndarray, count: int) -> None:
    """Raises an InputError unless the values are those of an index of `count` images in `files`."""
    images, refusal = indexed.images, indexed.refusal
    for name, valid in [
        ("files", np.array_equal(images.files, files)),
        ("labels", len(indexed.labels) == count and (indexed.labels >= 0).all()),
        ("refusal", np.isin(refusal, list(Refusal)).all()),
        ("orientation", ((images.orientation >= 1) & (images.orientation <= 8)).all()),
        ("sizes", (images.sizes[refusal == Refusal.NONE] > 0).all()),
    ]:
        if not valid:
            raise InputError(f"{name} does not match the images")


def _image_fields() -> list[str]:
    # The index does not depend on the decoder, and its name depends on the states of the files.
    others = ("decoder", "states")
    return [name for name in EncodedImages.__dataclass_fields__ if name not in others]


def _other_fields() -> list[str]:
    return [name for name in Indexed._fields if name not in ("images", "path")]
