"""Reading weight files: plain arrays only, never pickles."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import chex
import numpy as np
import pytest

from imta_jax.interop import read_weights


class Unpickled:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return open, (str(self.path), "w")


def pickled_arrays(folder: Path, value: Unpickled) -> Path:
    np.savez(folder / "objects.npz", weight=np.array([value], dtype=object))
    return folder / "objects.npz"


def old_checkpoint(folder: Path, value: Unpickled) -> Path:
    (folder / "old.pth").write_bytes(pickle.dumps({"weight": value}))
    return folder / "old.pth"


def zipped_checkpoint(folder: Path, value: Unpickled) -> Path:
    with zipfile.ZipFile(folder / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": value}))
        archive.writestr("archive/data/0", bytes(12))
    return folder / "new.pth"


@pytest.mark.parametrize("write", [pickled_arrays, old_checkpoint, zipped_checkpoint])
def test_pickles_raise_and_are_not_executed(tmp_path: Path, write: Callable):
    created = tmp_path / "created"
    path = write(tmp_path, Unpickled(created))
    with pytest.raises(ValueError, match=rf"{path.name}.*numpy\.savez"):
        read_weights(path)
    assert not created.exists()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"not weights at all", single_array(), b"PK\x03\x04cut"])
def test_other_files_raise(tmp_path: Path, content: bytes):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.npz.*\.npz"):
        read_weights(tmp_path / "weights.npz")


def test_missing_file_raises_with_its_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        read_weights(tmp_path / "missing.npz")


def test_plain_arrays_are_read_unchanged(tmp_path: Path):
    written = {"classifier.0.bias": np.arange(3.0), "classifier.0.weight": np.ones((3, 2))}
    np.savez(tmp_path / "weights.npz", **written)
    actual = read_weights(tmp_path / "weights.npz")
    chex.assert_trees_all_equal(dict(actual), written)
