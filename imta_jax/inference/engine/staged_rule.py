"""The exit rule of a staged network, as one function per exit on a flat carry.

The carry is part of the state between stages: it is gathered, compacted and scattered with the
feature maps of its image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, Float, Shaped

if TYPE_CHECKING:
    from imta_jax.techniques.exit_rules import ExitRule

Carry = tuple[Shaped[Array, "N ..."], ...]
ScoreFunction = Callable[[Float[Array, "N K"], Carry], tuple[Float[Array, " N"], Carry]]


@dataclasses.dataclass(frozen=True)
class StagedRule:
    """An exit rule other than the confidence.

    Attributes:
      name: registered name or dotted path, for descriptions.
      options: options of the rule.
      scores: per exit, (logits, carry) -> (score, next carry). The first exit gets an empty carry,
        the last one returns one.
      carry_sizes: per exit, number of arrays in the carry that it gets.
    """

    name: str
    options: Mapping[str, Any]
    scores: tuple[ScoreFunction, ...]
    carry_sizes: tuple[int, ...]


def staged_rule(rule: "ExitRule", num_exits: int, num_classes: int) -> StagedRule:
    """Makes a rule's functions per exit.

    Args:
      rule: see `techniques.exit_rules`; other than the confidence, which the engine computes.
      num_exits: E of the network.
      num_classes: K of the network.

    Raises:
      ValueError: the rule returns another shape.
    """
    # Imported here because an exported network runs without the code of techniques.
    from imta_jax.techniques.exit_rules import check_exit_rule

    structures: list[Any] = [
        None,
        *map(jax.tree.structure, check_exit_rule(rule, num_exits, num_classes)),
    ]

    def scorer(i: int) -> ScoreFunction:
        def score(logits: Float[Array, "N K"], carry: Carry) -> tuple[Float[Array, " N"], Carry]:
            previous = jax.tree.unflatten(structures[i], carry) if i else None
            value, following = rule(logits, previous)
            return value, tuple(jax.tree.leaves(following)) if i < num_exits - 1 else ()

        return score

    sizes = [0, *(structure.num_leaves for structure in structures[1:num_exits])]
    return StagedRule(
        rule.name, dict(rule.options), tuple(map(scorer, range(num_exits))), tuple(sizes)
    )


def split_state(state: Sequence[Any], carry_size: int) -> tuple[tuple[Any, ...], Carry]:
    """Splits a state into the network's arrays and the rule's carry, which comes last."""
    boundary = len(state) - carry_size
    return tuple(state[:boundary]), tuple(state[boundary:])
