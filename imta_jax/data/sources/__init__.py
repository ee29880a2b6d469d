"""Where images come from: one small file for each kind of source.

A source is a module with two functions. `accepts(source) -> bool` reports whether it reads what
`config.data.source` names, and `read(request) -> SourceData` reads it. To add one, write such a
module and list it in `_KINDS` before the modules that accept more names.
`source_validation.py` checks what was read.
"""

from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources import embedded, folder, npz, tfds, tfds_directory
from imta_jax.data.sources.request import SourceRequest

__all__ = ["SourceRequest", "load_source", "tfds_description"]

# Asked in this order; the last accepts every name.
_KINDS = (embedded, npz, tfds_directory, folder, tfds)


def load_source(request: SourceRequest) -> SourceData:
    """Reads, or finds and indexes, the splits of a source.

    Raises:
      ValueError: the name is unknown, or what was found is not an image classification dataset.
      FileNotFoundError: the data are not there; the message says how to get them.
      PermissionError: they may not be read.
      ModuleNotFoundError: TensorFlow or TFDS is needed and not installed.
      OSError: the disk was full while preparing.
    """
    kind = next(kind for kind in _KINDS if kind.accepts(request.source))
    return kind.read(request)


def tfds_description(source: str) -> tuple[str, int, tuple[int, ...]] | None:
    """Name, number of classes and image shape of a dataset that TFDS knows, without its images.

    None for a source of another kind; a side that differs from image to image is None in the shape.

    Raises:
      ValueError: an unknown name, or no images with one class label each.
      ModuleNotFoundError: TFDS or TensorFlow is not installed.
    """
    kind = next(kind for kind in _KINDS if kind.accepts(source))
    return tfds.describe(source) if kind is tfds else None
