"""What training carries from step to step, and the names under which it is saved."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.distributed import parameter_sharding, place_parameters, place_replicated
from imta_jax.models import MultiExitClassifier
from imta_jax.training.packing import Packed, Packing, unpacked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree that a step takes, donates and returns.

    Attributes:
      step: int32, steps done.
      trainable: the parameters that the phase trains, an `nnx.State` when unpacked.
      rest: frozen parameters and batch-normalisation statistics.
      opt_state: of optax, for `trainable` as it is packed.
      halted_at: int32, the step at which the loss was not finite, -1 while all is well. A halted
        state no longer changes, so that it stays the last good one until the host looks.
    """

    step: jax.Array
    trainable: Packed
    rest: nnx.State
    opt_state: Any
    halted_at: jax.Array


def create_state(
    classifier: MultiExitClassifier,
    trainable: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a classifier, in the modes it is in, into its structure and a state on the mesh.

    Args:
      classifier: its arrays are copied, not taken.
      trainable: an NNX filter; every other variable is frozen.
      tx: the optimiser.
      mesh: where the state lives.
    """
    graphdef, params, rest = nnx.split(classifier, trainable, ...)
    params, rest = _packed(params, mesh), place_parameters(rest, mesh)
    zero, never = place_replicated((np.int32(0), np.int32(-1)), mesh)
    # In one program: alone, every shape of a moment would have a program of its own.
    opt_state = _placed(jax.jit(tx.init)(params), mesh)
    return graphdef, TrainState(zero, params, rest, opt_state, never)


def _packed(tree: nnx.State, mesh: Mesh) -> Packed:
    """Joins what is small and would lie whole on every device, and places all."""
    host = jax.tree.map(np.array, tree)
    packing = Packing.of(host, lambda x: parameter_sharding(mesh, x.shape).is_fully_replicated)
    return _placed(packing.pack(host), mesh)


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Copies parameters, or their moments, to where they belong, joined ones whole."""

    def place(x: Any) -> Any:
        if not isinstance(x, Packed):
            return place_parameters(x, mesh)
        vector = place_replicated(x.vector, mesh)
        return Packed(vector, place_parameters(x.large, mesh), x.packing)

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, Packed))


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """Flattens a pytree to readable names -> arrays, the form in which checkpoints hold it."""
    tree = unpacked(tree)
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
