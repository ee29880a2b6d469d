"""The one door to TensorFlow, which is optional and must leave the accelerators to JAX."""

import contextlib
from types import ModuleType


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
