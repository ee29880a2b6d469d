"""Copies of an `.npz` that NumPy cannot read, for the tests of its readers."""

import io
import zipfile
from pathlib import Path

import numpy as np


def unreadable(path: Path, key: str, kind: str) -> Path:
    """Changes one member of an archive and returns its path.

    Args:
      path: the `.npz`.
      key: name of the array.
      kind: "encrypted", "method" (an unknown compression), "shape" (larger than any memory) or
        "header" (of an array, not Python).
    """
    changed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if kind == "shape" and name == f"{key}.npy":
                content = _with_shape(content)
            if kind == "header" and name == f"{key}.npy":
                content = content.replace(b"}", b"(")
            new.writestr(name, content)
    content = bytearray(changed.getvalue())
    if kind in ("encrypted", "method"):
        # Entries of the central directory: flags at byte 8, compression method at byte 10.
        entry = content.index(b"PK\x01\x02")
        while content[entry + 46 :][: len(key)] != key.encode():
            entry = content.index(b"PK\x01\x02", entry + 1)
        offset, value = (8, 1) if kind == "encrypted" else (10, 9)
        local = int.from_bytes(content[entry + 42 : entry + 46], "little")
        content[entry + offset] = content[local + offset - 2] = value
    path.write_bytes(content)
    return path


def _with_shape(content: bytes) -> bytes:
    array, header = np.load(io.BytesIO(content)), io.BytesIO()
    shape = (10**9, *array.shape[1:], 10**5)
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue() + array.tobytes()
