"""A training phase without arrays: shapes, types and shardings of the state that it would have.

Programs are compiled from it for devices that are not attached (`imta_jax.planning`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from imta_jax.config import RunConfig
from imta_jax.data import DatasetInfo
from imta_jax.distributed import parameter_sharding, replicated
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.prng_keys import is_key
from imta_jax.training.objectives import StatefulObjective
from imta_jax.training.packing import Packed, Packing
from imta_jax.training.setup import (
    Phase,
    assemble_phase,
    new_phase_one,
    phase_parts,
)
from imta_jax.training.state import TrainState


def abstract_phase(
    name: str,
    config: RunConfig,
    info: DatasetInfo,
    optimizer: optax.GradientTransformation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
) -> Phase:
    """A phase whose network has shapes instead of arrays.

    Args:
      name: "phase_one" or "phase_two".
      config: the run's config.
      info: classes and image shape.
      optimizer: optimizer of the trained variables.
      mean: mean of the pixels per channel, in 0..1.
      std: standard deviation of the pixels per channel, in 0..1.
      mesh: the devices; they need not be attached.
    """
    others: list[Any] = []

    def build() -> MultiExitClassifier:
        classifier, objective, trainable = phase_parts(name, config, new_phase_one(config, info))
        others[:] = objective, trainable
        return classifier

    classifier = nnx.eval_shape(build)
    objective, trainable = others
    return assemble_phase(
        name, config, classifier, objective, trainable, optimizer, mean=mean, std=std, mesh=mesh
    )


def abstract_state(phase: Phase) -> TrainState:
    """`phase.new_state()` as `jax.ShapeDtypeStruct` with shardings."""
    mesh = phase.mesh
    _, params, rest = nnx.split(phase.classifier, phase.trainable, ...)
    packing = Packing.from_tree(
        params, lambda x: parameter_sharding(mesh, x.shape).is_fully_replicated
    )
    packed = jax.eval_shape(packing.pack, params)
    opt_state = jax.eval_shape(phase.optimizer.init, packed)
    objective, extra = phase.objective, None
    if isinstance(objective, StatefulObjective):
        extra = jax.eval_shape(lambda: objective.new_state(phase.classifier))
    scalar: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(
        scalar,
        _placed(packed, mesh),
        _placed(rest, mesh),
        _placed(opt_state, mesh),
        scalar,
        _replicated(extra, mesh),
    )


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Parameters and their moments with the shardings of `create_state`."""

    def place(x: Any) -> Any:
        if isinstance(x, Packed):
            large = jax.tree.map(place, x.large)
            return Packed(_replicated(x.vector, mesh), large, x.packing)
        shape = () if is_key(x) else x.shape
        return _with_sharding(x, parameter_sharding(mesh, shape))

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, Packed))


def _replicated(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: _with_sharding(x, replicated(mesh)), tree)


def _with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
