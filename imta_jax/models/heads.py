"""Heads by name: built by their factory, checked, and started from the heads of phase I."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from imta_jax.config import HeadsConfig
from imta_jax.errors import InputError
from imta_jax.models.checks import check_heads
from imta_jax.models.classifier import Heads
from imta_jax.runtime.factories import call_factory
from imta_jax.runtime.registry import HEADS, dotted_path_of

# Importing the package registers its heads.
from imta_jax.techniques import IndependentHeads, TransferHeads


def make_heads(
    config: HeadsConfig,
    *,
    feature_widths: tuple[int, ...],
    num_classes: int,
    rngs: nnx.Rngs,
    field: str,
) -> Heads:
    """Builds the heads that `config.transfer` names.

    Args:
      config: its `options`, `stop_gradient` and `initialization` are passed to the factory.
      feature_widths: feature widths of the backbone.
      num_classes: K.
      rngs: random keys for the factory.
      field: config field of the name, for error messages.

    Raises:
      InputError: an unknown name, or heads that do not fulfill the contract.
    """
    factory = HEADS.get(config.transfer, field)
    defaults = {"stop_gradient": config.stop_gradient, "initialization": config.initialization}
    sizes: Mapping[str, Any] = {"feature_widths": feature_widths, "num_classes": num_classes}
    if HEADS.is_built_in(config.transfer):
        return factory(ConfigDict({**defaults, **config.options}), **sizes, rngs=rngs)
    label = f"{field} {config.transfer!r}"
    options_field = f"{field}_options" if field.startswith("config.") else "heads_config.options"
    heads = call_factory(
        factory, config.options, label, options_field, defaults=defaults, **sizes, rngs=rngs
    )
    return check_heads(heads, **sizes, field=label)


def start_heads(heads: Heads, earlier: Heads) -> None:
    """Copies the phase-I heads into those of phase II (`config.phase_two.start="phase_one"`).

    Heads with the variables of the earlier ones are copied. Other heads have a method
    `start_from(earlier)`.

    Raises:
      InputError: the heads have other variables and no such method.
    """
    state, earlier_state = nnx.state(heads), nnx.state(earlier)
    if _shapes_by_path(state) == _shapes_by_path(earlier_state):
        nnx.update(heads, jax.tree.map(jnp.array, earlier_state))
        return
    linear = isinstance(heads, IndependentHeads | TransferHeads)
    start_from = getattr(heads, "start_from", None)
    if start_from is None or (linear and not hasattr(earlier, "linears")):
        raise InputError(
            'start="phase_one" copies the phase-I heads, but '
            f"{dotted_path_of(heads)} and {dotted_path_of(earlier)} have different variables: set "
            'config.phase_two.start="fresh", or give the new heads a method start_from(earlier)'
        )
    start_from(earlier)


def _shapes_by_path(state: nnx.State) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
