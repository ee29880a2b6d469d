"""Running statistics as one vector during a dispatch of several steps.

A step moves a running mean and variance for every batch normalization. On accelerators, most of
these updates are kernels of their own. A dispatch concatenates the statistics before its first step
and splits them after the last one, so that states and checkpoints hold them by name
(`docs/results/accelerators_log.md`). The update is the same function of the same numbers.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.distributed import parameter_sharding
from imta_jax.training.packing import Packing, unpacked
from imta_jax.training.state import TrainState


def moving_statistics(classifier: nnx.Module) -> Any:
    """The NNX filter of the running statistics that a step changes.

    Args:
      classifier: its layers are in the modes of the step.
    """
    moving = {
        (*path, name)
        for path, layer in nnx.iter_modules(classifier)
        if not getattr(layer, "use_running_average", True)
        for name, variable in vars(layer).items()
        if isinstance(variable, nnx.BatchStat)
    }
    return lambda path, value: tuple(path) in moving


def packs_statistics(state: TrainState, mesh: Mesh) -> bool:
    """Whether a dispatch packs the statistics of a state: on accelerators.

    Steps with a moving average, or with learned sample weights, read the statistics by name.
    """
    by_name = state.average is not None or state.extra is not None
    return mesh.devices.flat[0].platform != "cpu" and not by_name


def with_packed_statistics(state: TrainState, statistics: Any, mesh: Mesh) -> TrainState:
    """A state whose replicated running statistics are one vector, for `step.train_step`.

    Args:
      state: traced.
      statistics: see `moving_statistics`.
      mesh: the devices.
    """
    chosen = {id(x) for x in jax.tree.leaves(nnx.filter_state(state.rest, statistics))}

    def may_pack(x: Any) -> bool:
        return id(x) in chosen and parameter_sharding(mesh, x.shape).is_fully_replicated

    packing = Packing.from_tree(state.rest, may_pack)
    return dataclasses.replace(state, rest=packing.pack(state.rest))


def without_packed_statistics(state: TrainState) -> TrainState:
    """The inverse of `with_packed_statistics`."""
    return dataclasses.replace(state, rest=unpacked(state.rest))
