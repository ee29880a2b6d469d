"""Reads the serialized programs of an export."""

from pathlib import Path

import jax
import jax.export

from imta_jax.errors import InputError


def read_program(path: Path) -> jax.export.Exported:
    """Reads a StableHLO program.

    Raises:
      InputError: this version of JAX cannot read it.
    """
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # the FlatBuffers reader raises exceptions of many types
        raise InputError(
            f"{path}: jax {jax.__version__} cannot read it ({error}); export the network again "
            "with a jax that is not newer"
        ) from error
