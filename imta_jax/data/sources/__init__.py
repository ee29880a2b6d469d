"""Where images come from: one module for each kind of source.

A source module has two functions. `accepts(source) -> bool` decides whether it reads what
`config.data.source` names, and `read(request) -> SourceData` reads it. To add one, write such a
module and list it in `_KINDS` before the modules that accept more names. Sources from outside this
package are registered instead; see `own.py`.
`source_validation.py` checks what was read.
"""

from types import ModuleType

from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources import embedded, folder, npz, own, tfds, tfds_directory
from imta_jax.data.sources.request import SourceRequest
from imta_jax.data.sources.storage import can_be_moved, check_permitted
from imta_jax.errors import InputError
from imta_jax.runtime.registry import SOURCES, dotted_path_of

__all__ = ["SourceRequest", "can_be_moved", "load_source", "source_component", "tfds_description"]

# The first that accepts a source reads it; the last accepts every name. The search for entry points
# in `own` takes 40 ms, which .npz files do not need.
_KINDS = (npz, own, embedded, tfds_directory, folder, tfds)


def load_source(request: SourceRequest) -> SourceData:
    """Reads the splits of a source into arrays, or indexes its encoded images.

    Raises:
      ValueError: an unknown name, or no image classification dataset.
      FileNotFoundError: the data do not exist; the message says how to get them.
      PermissionError: the data may not be read.
      ModuleNotFoundError: TensorFlow or TFDS is required and not installed.
      OSError: the disk is full.
    """
    kind = _kind_of(request.source)
    if request.source_options and kind is not own:
        raise InputError(
            f"config.data.source {request.source!r} has no options; found"
            f" config.data.source_options {', '.join(request.source_options)}"
        )
    return kind.read(request)


def _kind_of(source: str) -> ModuleType:
    """The module that reads a source. Raises an OSError if the system rejects its path."""
    check_permitted(source)
    return next(kind for kind in _KINDS if kind.accepts(source))


def tfds_description(source: str, *, one_shape: bool) -> tuple[str, int, tuple[int, ...]] | None:
    """Name, number of classes and image shape of a TFDS dataset, without reading it.

    Args:
      source: `config.data.source`.
      one_shape: whether all images must have one shape.

    Returns:
      None for another kind of source. A side that varies between images is None in the shape.

    Raises:
      ValueError: an unknown name, no images with one class label each, or different shapes.
      ModuleNotFoundError: TFDS or TensorFlow is not installed.
    """
    kind = _kind_of(source)
    return tfds.describe(source, one_shape=one_shape) if kind is tfds else None


def source_component(source: str) -> str | None:
    """The dotted path of the factory of a custom source; None for others."""
    return dotted_path_of(SOURCES.get(source)) if own.accepts(source) else None
