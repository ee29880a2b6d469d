"""Exponential moving average (EMA) of the trained parameters and of all batch statistics.

After training step t, from 1, with values v_t:

    a_t = a_(t-1) + (1 - d_t) (v_t - a_(t-1)),    d_t = min(decay, (1 + t) / (10 + t)),

where a_0 are the initial values. The bound on d_t, as in TensorFlow's
`ExponentialMovingAverage(num_updates=...)`, keeps the initial values out of the average of a short
training. Validation, evaluation, phase II and exports use the average; training continues from the
values. Checkpoints hold the average as their `model`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.packing import Packed
from imta_jax.training.state import Average, TrainState
from imta_jax.training.step import TrainStep
from imta_jax.types import Batch


def new_average(state: TrainState) -> Average:
    """The average before the first step: a copy with the state's shardings."""
    values = _values(state)
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree),
        out_shardings=jax.tree.map(lambda x: x.sharding, values),
    )
    return copy(values)


def with_average(step: TrainStep, decay: float) -> TrainStep:
    """A training step that also updates the state's average.

    Args:
      step: the training step.
      decay: between 0 and 1.
    """

    def averaged_step(state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        after, metrics = step(state, batch)
        average = _moved(state.average, _values(after), decay, after.step)
        # A halted state does not change.
        kept = jax.tree.map(
            lambda new, old: jax.lax.select(after.halted_at < 0, new, old), average, state.average
        )
        return dataclasses.replace(after, average=kept), metrics

    return averaged_step


def evaluated_parts(state: TrainState) -> tuple[Packed, nnx.State]:
    """The trained parameters and all other variables that validation uses."""
    if state.average is None:
        return state.trainable, state.rest
    return state.average.trainable, with_statistics(state.rest, state.average.statistics)


def statistics_of(rest: nnx.State) -> nnx.State:
    """The batch statistics among the variables that are not trained."""
    return nnx.filter_state(rest, nnx.BatchStat)


def with_statistics(rest: nnx.State, statistics: nnx.State) -> nnx.State:
    """The variables that are not trained, with other batch statistics."""
    _, others = nnx.split_state(rest, nnx.BatchStat, ...)
    return nnx.merge_state(others, statistics)


def _values(state: TrainState) -> Average:
    """The variables that are averaged."""
    return Average(state.trainable, statistics_of(state.rest))


def _moved(average: Any, values: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The average after the step of this number, from 1. Values that are not real are copied."""
    count = step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + count) / (10 + count))

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        # A value that does not change leaves its average as it is, without rounding.
        return old + weight.astype(new.dtype) * (new - old)

    return jax.tree.map(move, average, values)
