"""The one door to TensorFlow, which is optional and must leave the accelerators to JAX."""

import contextlib
import os
from types import ModuleType


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow with the GPUs hidden from it: it would take their memory from JAX.

    Raises:
      ModuleNotFoundError: TensorFlow is not installed.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in (None, "1"):  # 1 is what JAX sets
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # or it tells of every start on stderr
    import tensorflow as tf

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
