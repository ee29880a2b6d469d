"""The training state, and the names under which checkpoints store it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from imta_jax.distributed import parameter_sharding, place_parameters, place_replicated
from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.prng_keys import as_numbers, from_numbers
from imta_jax.training.packing import Packed, Packing, packed_like, unpacked

# A ShapeDtypeStruct is a variable of an abstract network (`abstract_phase`).
_NUMERIC = (bool, int, float, np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """Moving averages; see `averaging`.

    Attributes:
      trainable: average of the trained parameters.
      statistics: average of the batch statistics, also of frozen layers.
    """

    trainable: Packed
    statistics: nnx.State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The pytree that a step takes, donates and returns.

    Attributes:
      step: number of steps, int32.
      trainable: the trained parameters; an `nnx.State` when unpacked.
      rest: frozen parameters and BatchNorm statistics.
      opt_state: Optax's state for the packed `trainable`.
      halted_at: the step whose loss or gradient was not finite, int32; -1 if there was none. A
        halted state does not change, so that the host finds the last good one at the next check.
      extra: state of a `StatefulObjective` (learned sample weights), or None.
      average: average of parameters and batch statistics, or None; see `averaging`.
    """

    step: Int32[Array, ""]
    trainable: Packed
    rest: nnx.State
    opt_state: Any
    halted_at: Int32[Array, ""]
    extra: Any = None
    average: Average | None = None


def create_state(
    classifier: MultiExitClassifier,
    trainable: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    extra: Any = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a classifier in its current modes into its structure and a state on the mesh.

    Args:
      classifier: its arrays are copied.
      trainable: NNX filter of the trained variables; all others are frozen.
      tx: the optimizer.
      mesh: the devices of the state.
      extra: state of a `StatefulObjective`, which is replicated, or None.
    """
    graphdef, params, rest = nnx.split(classifier, trainable, ...)
    params, rest = _packed(params, mesh), place_parameters(rest, mesh)
    scalars: Any = (np.int32(0), np.int32(-1))
    zero, never = place_replicated(scalars, mesh)
    # Jitted, because eager execution would compile a program for every shape.
    opt_state = _placed(jax.jit(tx.init)(params), mesh)
    extra = None if extra is None else place_replicated(extra, mesh)
    return graphdef, TrainState(zero, params, rest, opt_state, never, extra)


def _packed(tree: nnx.State, mesh: Mesh) -> Packed:
    """Packs small replicated parameters, and places all of them."""
    host = jax.tree.map(np.array, tree)
    packing = Packing.from_tree(
        host, lambda x: parameter_sharding(mesh, x.shape).is_fully_replicated
    )
    return _placed(packing.pack(host), mesh)


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Copies parameters, or their moments, to the mesh. Packed vectors are replicated."""

    def place(x: Any) -> Any:
        if not isinstance(x, Packed):
            return place_parameters(x, mesh)
        vector = place_replicated(x.vector, mesh)
        return Packed(vector, place_parameters(x.large, mesh), x.packing)

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, Packed))


def check_variables(variables: nnx.State) -> None:
    """Checks that all variables hold arrays or numbers, which checkpoints can store.

    Raises:
      InputError: names the first variable that does not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(variables)):
        numeric = isinstance(leaf, _NUMERIC)
        if not numeric or getattr(leaf, "dtype", None) == np.object_:
            raise InputError(
                f"the variable {_name(path)} holds {leaf!r:.40}; expected an array or a number:"
                " keep other values in plain attributes"
            )


def check_updated_in_place(updated: nnx.Module, classifier: nnx.Module) -> None:
    """Checks that a module over a classifier's variables has not replaced any of them.

    A replaced variable would keep its old value in the training state. Call it under a trace, where
    it costs nothing.

    Args:
      updated: return value of `optimize_classifier`, after its forward pass.
      classifier: the argument of `optimize_classifier`.

    Raises:
      InputError: names the first variable that was replaced.
    """
    before = {path: v for path, v in nnx.iter_graph(classifier) if isinstance(v, nnx.Variable)}
    for path, variable in nnx.iter_graph(updated):
        if isinstance(variable, nnx.Variable) and before.get(path, variable) is not variable:
            name = ".".join(map(str, path))
            raise InputError(
                f"the variable {name} was replaced in the forward pass; update it in place:"
                f" self.{path[-1]}[...] = value"
            )


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """Flattens a pytree to readable names -> arrays, as checkpoints store it.

    PRNG keys are stored as their bits; see `fill_tree` for the inverse.
    """
    tree = unpacked(tree)
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): as_numbers(leaf) for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def fill_tree(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """The inverse of `named_arrays`: a pytree with the structure of `tree` and these arrays."""
    names, template = named_arrays(tree), unpacked(tree)
    leaves = [
        from_numbers(arrays[name], leaf)
        for name, leaf in zip(names, jax.tree.leaves(template), strict=True)
    ]
    return packed_like(jax.tree.unflatten(jax.tree.structure(template), leaves), tree)
