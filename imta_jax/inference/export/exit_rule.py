"""The exit rule of an export, as one serialized program per exit.

Folders with the confidence as exit rule have no such programs. Others have format version 3.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.inference.engine.staged_rule import Carry, ScoreFunction, StagedRule
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.programs import read_program


def export_rule(
    rule: StagedRule | None, num_classes: int, platforms: Sequence[str]
) -> list[jax.export.Exported]:
    """Exports a rule for any batch size.

    Args:
      rule: exit rule of the network; None for the confidence.
      num_classes: K of its logits.
      platforms: platforms to compile for.

    Returns:
      Per exit, a program (logits [b, K], carry) -> (score [b], next carry); none for the
      confidence.
    """
    (batch_size,) = jax.export.symbolic_shape("b")
    logits, carry = jax.ShapeDtypeStruct((batch_size, num_classes), jnp.float32), ()
    programs = []
    for score in () if rule is None else rule.scores:
        export = jax.export.export(jax.jit(score), platforms=tuple(platforms))
        program = for_any_batch_size("the exit rule", lambda e=export, c=carry: e(logits, c))
        programs.append(program)
        _, following = jax.tree.unflatten(program.out_tree, program.out_avals)
        carry = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in following)
    return programs


def for_any_batch_size(part: str, export: Callable[[], jax.export.Exported]) -> jax.export.Exported:
    """Calls `export`, which traces a part of the network with a symbolic batch size.

    Raises:
      InputError: the part needs the batch size as a number.
    """
    try:
        return export()
    except Exception as error:  # custom code may raise any exception
        raise InputError(
            f"{part} cannot be exported for batches of any size: {type(error).__name__}: {error}; "
            "expected code that uses the batch size only in shapes: x.shape[0] instead of len(x), "
            "and no int(...) or comparison of it"
        ) from error


def describe_rule(rule: StagedRule | None) -> dict[str, Any]:
    """The entries of the manifest about a rule; none for the confidence."""
    if rule is None:
        return {}
    return {
        "format_version": export_folder.RULE_VERSION,
        "exit_rule": {"name": rule.name, "options": dict(rule.options)},
    }


def read_rule(folder: Path, manifest: Mapping[str, Any]) -> StagedRule | None:
    """The rule of an exported folder; None for the confidence.

    Args:
      folder: exported folder whose checksums were verified.
      manifest: content of `manifest.json`.

    Raises:
      ValueError: a program cannot be read.
    """
    if "exit_rule" not in manifest:
        return None
    programs = [
        read_program(folder / export_folder.rule_name(i)) for i in range(len(manifest["stages"]))
    ]
    sizes = [len(program.in_avals) - 1 for program in programs]
    entry = manifest["exit_rule"]
    return StagedRule(entry["name"], entry["options"], tuple(map(_scorer, programs)), tuple(sizes))


def _scorer(program: jax.export.Exported) -> ScoreFunction:
    def score(logits: Float[Array, "N K"], carry: Carry) -> tuple[Float[Array, " N"], Carry]:
        return cast(tuple[jax.Array, Carry], program.call(logits, tuple(carry)))

    return score
