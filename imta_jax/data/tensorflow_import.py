"""The import of TensorFlow, which is optional and must not occupy JAX's GPUs."""

import contextlib
import re
from types import ModuleType
from typing import TYPE_CHECKING

from imta_jax.errors import MissingPackageError
from imta_jax.runtime.optional_packages import install_command

if TYPE_CHECKING:
    import tensorflow as tf

# Names of graph nodes and operations that TensorFlow adds to a message.
_GRAPH_NAMES = re.compile(
    r"\{\{.*?\}\} ?|Error in user-defined function passed to .*?Iterator::\S+ | \[Op:.*"
)

_USES = (
    "reading datasets of TensorFlow Datasets, files in buckets, and config.data.pipeline='tf_data'"
)


def import_tensorflow(purpose: str = _USES) -> ModuleType:
    """Imports TensorFlow and hides GPUs from it, since it would reserve their memory.

    Args:
      purpose: what requires it, for the message.

    Raises:
      ModuleNotFoundError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} requires TensorFlow, which cannot be imported ({error}):"
            f" {install_command('tfds')}"
        ) from error

    # If the caller has already used TensorFlow, its visible devices can no longer be changed.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


def has_tensorflow() -> bool:
    """Whether TensorFlow can be imported; imports it if so."""
    try:
        import_tensorflow()
    except ImportError:
        return False
    return True


def short_message(error: "tf.errors.OpError") -> str:
    """The first line of a TensorFlow error without graph names, at most 500 characters."""
    message = (error.message or type(error).__name__).splitlines()[0]
    return _GRAPH_NAMES.sub("", message)[:500]
