"""Named arrays in `.npz` and `.safetensors` files. Nothing is unpickled."""

import functools
import itertools
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.runtime.files import check_regular_file, replacing

_MAX_HEADER_BYTES = 100_000_000  # The limit of the reference implementation.
_CONVERT = (
    "Convert a PyTorch checkpoint that you trust: "
    "numpy.savez(out, **{k: v.numpy() for k, v in state_dict.items()})"
)


def write_npz(path: str | Path, **arrays: Any) -> None:
    """Writes an `.npz` in one atomic step; creates its folder."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` of plain arrays by name.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: the file does not exist.
      InputError: not an `.npz` of plain arrays. The message explains how to convert a PyTorch
        checkpoint.
    """
    check_regular_file(Path(path))
    try:
        with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            # A PyTorch checkpoint is also a zip file. NumPy would return its pickle as bytes.
            others = [name for name in archive.namelist() if not name.endswith(".npy")]
            if others:
                raise InputError(f"it contains {others[0]}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except UNREADABLE_ARCHIVE as error:
        raise InputError(f"{path} is not an .npz of plain arrays ({error}). {_CONVERT}") from error


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file by name.

    The file is the length of a JSON header (8 bytes, little-endian), the header with the type,
    shape and byte range of each array, and the bytes.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: the file does not exist.
      InputError: the header is damaged, a type is unknown, or an array's bytes are missing.
    """
    check_regular_file(Path(path))
    try:
        with Path(path).open("rb") as file:
            header, data = _header(file), file.read()
        header.pop("__metadata__", None)
        arrays = {name: _array(name, entry, data) for name, entry in header.items()}
        _check_no_overlap(header)
        return arrays
    except (ValueError, TypeError, AttributeError, KeyError, struct.error) as error:
        raise InputError(
            f"{path} is not a complete .safetensors file ({error}); write or copy it again"
        ) from error


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a `.safetensors` file, which `read_safetensors` describes.

    Args:
      path: the file.
      arrays: arrays by name, each of a type of the format.
      metadata: texts for other programs.
    """
    names = {dtype: name for name, dtype in _dtypes().items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    contents, offset = [], 0
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(content)],
        }
        contents.append(content)
        offset += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8 bytes
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(contents))


def _header(file: IO[bytes]) -> dict[str, Any]:
    """The JSON header, after which the file is read on."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MAX_HEADER_BYTES:
        raise InputError(f"its header has {length} bytes")
    text = file.read(length)
    if len(text) < length:
        raise InputError(f"its header has {length} bytes, of which {len(text)} are in the file")
    return json.loads(text)


def _check_no_overlap(header: Mapping[str, Any]) -> None:
    """Raises an `InputError` if two arrays share bytes."""
    ranges = ((*entry["data_offsets"], name) for name, entry in header.items())
    filled = sorted(range_ for range_ in ranges if range_[0] < range_[1])
    for (_, stop, name), (start, _, other) in itertools.pairwise(filled):
        if start < stop:
            raise InputError(f"{other} begins at byte {start}, before {name} ends at byte {stop}")


def _array(name: str, entry: dict[str, Any], data: bytes) -> np.ndarray:
    """An array of the header's type and shape from its range of bytes."""
    if entry["dtype"] not in _dtypes():
        raise InputError(
            f"{name} has the type {entry['dtype']}; expected {', '.join(_dtypes())}, for example "
            "converted to F32"
        )
    dtype, shape = _dtypes()[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{name}: bytes {start} to {stop} of {len(data)}; expected those of {shape} {dtype}"
        )
    return np.frombuffer(data[start:stop], dtype).reshape(shape)


@functools.cache
def _dtypes() -> dict[str, np.dtype]:
    """Types of the safetensors format, by their names in it."""
    import ml_dtypes  # The threshold command needs only NumPy and SciPy.

    types = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }
    return {name: np.dtype(dtype) for name, dtype in types.items()}
