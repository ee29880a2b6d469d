"""The one door to TensorFlow, which is optional and must leave the accelerators to JAX."""

import contextlib
import re
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

# What TensorFlow says of its own graph around a message.
_OF_THE_GRAPH = re.compile(
    r"\{\{.*?\}\} ?|Error in user-defined function passed to .*?Iterator::\S+ | \[Op:.*"
)


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow with the GPUs hidden from it: it would take their memory from JAX.

    Raises:
      ModuleNotFoundError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ModuleNotFoundError(
            f"images are decoded and resized by TensorFlow, which cannot be imported ({error}): pip"
            " install tensorflow-cpu; arrays with preprocessing padded_crop need none"
        ) from error

    # Already in use by the caller's own code: the devices it sees can no longer be changed.
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
    """The first line of what TensorFlow says, at most 500 characters, without its graph's names."""
    told = (error.message or type(error).__name__).splitlines()[0]
    return _OF_THE_GRAPH.sub("", told)[:500]
