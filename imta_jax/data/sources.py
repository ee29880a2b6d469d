"""From the name of a source to its arrays: the embedded subset, an .npz file, or TFDS by name.

A new source is one function with the signature of `Reader` and one line in `READERS`. TensorFlow
Datasets is in `tfds_source.py`; checks of what was read are in `raw.py`.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imta_jax.data import tfds_source
from imta_jax.data.raw import RawData

Reader = Callable[[], RawData]

_EMBEDDED = Path(__file__).with_name("embedded")
_NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def _fashion_mnist_small() -> RawData:
    return read_npz(_EMBEDDED / "fashion_mnist_small.npz")


# Sources that come with the package; any other name is a path or TFDS's.
READERS: dict[str, Reader] = {
    "fashion_mnist_small": _fashion_mnist_small,
}


def load_source(source: str, *, data_dir: str, download: bool) -> RawData:
    """Reads the training and test arrays of a source.

    Args:
      source: a name in `READERS`, a path ending in .npz, or the TFDS name of an image
        classification dataset that fits memory.
      data_dir: folder of TFDS's prepared datasets; "" is TFDS's default.
      download: whether TFDS may fetch and prepare what is not in `data_dir`.

    Raises:
      ValueError: the name is unknown, or what was found is not an image classification dataset.
      FileNotFoundError: the data are not there.
      ModuleNotFoundError: a TFDS name where TensorFlow or TFDS is not installed.
    """
    if source in READERS:
        return READERS[source]()
    if source.endswith(".npz"):
        return read_npz(Path(source).expanduser())
    return tfds_source.read(source, data_dir=data_dir, download=download, also_valid=READERS)


def read_npz(path: Path) -> RawData:
    """Reads train_images, train_labels, test_images, test_labels and, if there, class_names.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not an .npz archive, damaged, an array missing, or an array that is pickled:
        nothing is ever unpickled, since that would run code from the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; give the path of an existing .npz")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz archive (or is cut short); write it by np.savez")
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in _NPZ_KEYS if key not in archive.files]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; found: {', '.join(archive.files)};"
                f" expected: {', '.join(_NPZ_KEYS)} and, if the classes have names, class_names"
            )
        arrays = [_member(archive, key, path) for key in _NPZ_KEYS]
        names = _member(archive, "class_names", path) if "class_names" in archive.files else None
    return RawData(path.stem, *arrays, _class_names(names, path))


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
    return tuple(names.tolist())
