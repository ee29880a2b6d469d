"""Reads the serialized programs of an export, and checks that each fits the one before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def read_stages(paths: Sequence[Path]) -> list[jax.export.Exported]:
    """Reads the programs (weights, state) -> (state, logits) of the stages of a network.

    Raises:
      InputError: names the first program that cannot be read, or does not take the state of the
        stage before it, or has other logits.
    """
    programs, state, logits = [], None, None
    for path in paths:
        program = read_program(path)
        inputs, outputs = _signature(path, program)
        found = [_types(inputs[1]), _types(outputs[1])]
        for name, here, before in zip(("state", "logits"), found, (state, logits), strict=True):
            if before is not None and here != before:
                raise InputError(
                    f"{path} has the {name} {here}; the stage before it has {before}: it is of"
                    " another network; export the network again, or copy the folder again"
                )
        programs.append(program)
        state, logits = _types(outputs[0]), found[1]
    return programs


def _signature(path: Path, program: jax.export.Exported) -> tuple[Any, Any]:
    """The arguments and the results of a program, of two parts each."""
    arguments, keywords = jax.tree.unflatten(program.in_tree, program.in_avals)
    results = jax.tree.unflatten(program.out_tree, program.out_avals)
    parts = [arguments, results]
    if keywords or not all(isinstance(part, tuple) and len(part) == 2 for part in parts):
        raise InputError(
            f"{path} is no program (weights, state) -> (state, logits); export the network again,"
            " or copy the folder again"
        )
    return arguments, results


def _types(tree: Any) -> str:
    """Shapes and types of arrays, such as "float32[b,8,8,4]"."""
    return " ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(tree))
