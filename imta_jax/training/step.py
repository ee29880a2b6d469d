"""The training step, for any objective and input, and the validation step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Num, UInt8

from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.data.pipeline.on_device import OnDeviceIndices, OnDeviceSplit, on_device_batch
from imta_jax.distributed import batch_sharding, replicated, stacked_batch_sharding
from imta_jax.models import MultiExitClassifier, inference_logits, optimize_classifier
from imta_jax.nn.pixels import normalize
from imta_jax.nn.precision import with_matmul_precision
from imta_jax.options import MatmulPrecision
from imta_jax.training.objectives import ExitMetrics, Objective, masked_sums
from imta_jax.training.packed_statistics import (
    with_packed_statistics,
    without_packed_statistics,
)
from imta_jax.training.packing import Packed, unpacked
from imta_jax.training.state import TrainState, check_updated_in_place
from imta_jax.types import Batch, Labels

Outputs = TypeVar("Outputs")
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, ExitMetrics]]
OnDeviceStep = Callable[
    [TrainState, OnDeviceSplit, OnDeviceIndices], tuple[TrainState, ExitMetrics]
]


def train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    trainable: Any,
    tx: optax.GradientTransformation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    accumulate_parts: int = 1,
) -> TrainStep:
    """Returns one training step, a pure function to be compiled.

    Args:
      graphdef: the classifier's structure, in the modes that the objective sets.
      objective: the loss.
      trainable: NNX filter of the trained variables, the same as for `create_state`.
      tx: the optimizer.
      mean: mean of the pixels per channel, in 0..1.
      std: standard deviation of the pixels per channel, in 0..1.
      mesh: the devices that run it.
      accumulate_parts: parts of the batch that are computed one after the other to save memory.
        Gradients are the mean over parts; BatchNorm sees one part at a time.

    Returns:
      (state, batch) -> (state, metrics).
    """
    gradients_of = _gradients(graphdef, objective, trainable, mean=mean, std=std, mesh=mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        params = state.trainable.unpack()
        (loss, (metrics, rest)), grads = _accumulate(
            lambda rest, *part: gradients_of(params, rest, *part),
            state.rest,
            (batch.images, batch.labels),
            accumulate_parts,
        )
        packed: Any = state.trainable
        grads = packed.packing.pack(grads)
        updates, opt_state = tx.update(grads, state.opt_state, packed)
        params = optax.apply_updates(packed, updates)
        advanced = _advanced(state, params, rest, opt_state)
        return advance_if_finite(state, advanced, (loss, grads)), metrics

    return step


def _gradients(
    graphdef: nnx.GraphDef,
    objective: Objective,
    trainable: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
) -> Callable[..., Any]:
    """(params, rest, images, labels) -> ((loss, (metrics, rest)), gradients of the params)."""

    def loss_of(
        params: nnx.State,
        rest: nnx.State | Packed,
        images: UInt8[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], tuple[ExitMetrics, nnx.State | Packed]]:
        chex.assert_equal_shape_prefix([labels, images], 1)
        (loss, metrics), rest = apply_in_training(
            lambda network: objective(network, normalize(images, mean, std), labels),
            (graphdef, params, rest),
            trainable,
            mesh,
        )
        return loss, (metrics, rest)

    return jax.value_and_grad(loss_of, has_aux=True)


def apply_in_training(
    function: Callable[[MultiExitClassifier], Outputs],
    network: tuple[nnx.GraphDef, nnx.State, nnx.State | Packed],
    trainable: Any,
    mesh: Mesh,
) -> tuple[Outputs, Any]:
    """Calls a function of the optimized classifier, which may update variables in place.

    Args:
      function: classifier -> outputs.
      network: the classifier's structure, its trained variables and the rest.
      trainable: NNX filter of the trained variables.
      mesh: the devices that run it.

    Returns:
      (outputs, the updated rest, packed if it was).
    """
    graphdef, params, rest = network
    classifier = nnx.merge(graphdef, params, unpacked(rest), copy=True)
    optimized = optimize_classifier(classifier, "training", mesh=mesh)
    outputs = function(optimized)
    check_updated_in_place(optimized, classifier)
    _, _, moved = nnx.split(classifier, trainable, ...)
    return outputs, rest.packing.pack(moved) if isinstance(rest, Packed) else moved


def _advanced(state: TrainState, params: Any, rest: Any, opt_state: Any) -> TrainState:
    """The state after a step."""
    changed = {"trainable": params, "rest": rest, "opt_state": opt_state}
    return dataclasses.replace(state, step=state.step + 1, **changed)


def _accumulate(
    gradients_of: Callable[..., Any], rest: nnx.State, batch: tuple[Any, ...], parts: int
) -> Any:
    """((loss, (metrics, rest)), gradients) of a batch, as the mean over equal parts."""
    if parts == 1:
        return gradients_of(rest, *batch)

    def add_part(carry: tuple[nnx.State, Any], part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        rest, total = carry
        (loss, (metrics, rest)), grads = gradients_of(rest, *part)
        return (rest, jax.tree.map(jnp.add, total, (loss, metrics, grads))), None

    # A part takes every parts-th example, so that no example moves between devices.
    split = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in batch]
    shapes = jax.eval_shape(gradients_of, rest, *(x[0] for x in split))
    (loss, (metrics, _)), grads = shapes
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, grads))
    (rest, total), _ = jax.lax.scan(add_part, (rest, zeros), tuple(split))
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, total)
    return (loss, (metrics, rest)), grads


def augmented_step(step: TrainStep, augmentation: BatchAugmentation) -> TrainStep:
    """A step that augments its batch first; the same step if there is no augmentation."""
    if augmentation.is_identity:
        return step

    def augmented(state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        return step(state, augmentation(state.step, batch))

    return augmented


def jit_batch_step(
    step: TrainStep, mesh: Mesh, state: TrainState | None = None
) -> jax.stages.Wrapped:
    """Jits a step that takes a batch from the host. The state is donated.

    Args:
      step: see `train_step`.
      mesh: the devices.
      state: a state whose shardings are kept; None for replicated states.
    """
    shardings, batch = _state_sharding(state, mesh), batch_sharding(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch),
        out_shardings=(shardings, replicated(mesh)),
    )


def _state_sharding(state: TrainState | None, mesh: Mesh) -> Any:
    return replicated(mesh) if state is None else jax.tree.map(lambda x: x.sharding, state)


def jit_on_device_step(
    step: TrainStep, mesh: Mesh, state: TrainState | None = None, *, packed_statistics: Any = None
) -> jax.stages.Wrapped:
    """Jits several steps on images that are on the device, in one dispatch.

    Args:
      step: see `train_step`.
      mesh: the devices.
      state: see `jit_batch_step`.
      packed_statistics: NNX filter of the running statistics that are one vector during the
        dispatch; see `training.packed_statistics`. None packs nothing.

    Returns:
      (state, split, indices) -> (state, metrics with a leading axis of S steps, which are zero
      from `indices.steps` on). The state is donated.
    """

    def steps(
        state: TrainState, split: OnDeviceSplit, indices: OnDeviceIndices
    ) -> tuple[TrainState, ExitMetrics]:
        def advance(i: Int[Array, ""], carry: tuple[TrainState, ExitMetrics]):
            state, metrics = carry
            state, step_metrics = step(state, _batch_of(split, indices, i))
            return state, jax.tree.map(lambda x, y: x.at[i].set(y), metrics, step_metrics)

        if len(indices.index) == 1:  # Without a loop, compilers optimize more.
            state, metrics = step(state, _batch_of(split, indices, 0))
            return state, jax.tree.map(lambda x: x[None], metrics)
        if packed_statistics is not None:
            state = with_packed_statistics(state, packed_statistics, mesh)
        shapes = jax.eval_shape(lambda s: step(s, _batch_of(split, indices, 0))[1], state)
        count = len(indices.index)
        no_metrics = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
        state, metrics = jax.lax.fori_loop(0, indices.steps, advance, (state, no_metrics))
        return without_packed_statistics(state), metrics

    replicated_sharding: Any = replicated(mesh)
    indices: Any = stacked_batch_sharding(mesh)
    shardings = _state_sharding(state, mesh)
    return jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(
            shardings,
            replicated_sharding,
            OnDeviceIndices(indices, indices, indices, replicated_sharding),
        ),
        out_shardings=(shardings, replicated_sharding),
    )


def _batch_of(split: OnDeviceSplit, indices: OnDeviceIndices, i: Int[Array, ""] | int) -> Batch:
    return on_device_batch(split, indices.index[i], indices.corner[i], indices.flip[i])


def advance_if_finite(before: TrainState, after: TrainState, checked: Any) -> TrainState:
    """`after` if `checked` is finite, else `before`, halted. A halted state never changes again."""
    running = before.halted_at < 0
    # Not the norm, which overflows for large finite gradients.
    flags = [running, *(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(checked))]
    # The index of the first False; the appended one is found if all are True. XLA would turn
    # flags.all() into a chain of ands and copy it into every guarded array, which makes compile
    # time quadratic in the number of arrays.
    advances = jnp.argmin(jnp.stack([*flags, jnp.array(False)])) == len(flags)
    halted_at = jnp.where(running & ~advances, before.step, before.halted_at)
    marked = dataclasses.replace(before, halted_at=halted_at)
    return jax.tree.map(lambda new, old: jax.lax.select(advances, new, old), after, marked)


def jit_eval_step(
    graphdef: nnx.GraphDef,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    matmul_precision: MatmulPrecision = "default",
) -> Callable[[Packed, nnx.State, Batch], dict[str, Num[Array, "..."]]]:
    """Jits the validation of one batch.

    Args:
      graphdef: the classifier's structure; it runs in inference mode.
      mean: mean of the pixels per channel, in 0..1.
      std: standard deviation of the pixels per channel, in 0..1.
      mesh: the devices, over which batches are sharded.
      matmul_precision: see `nn.precision`.

    Returns:
      (trainable, rest, batch) -> sums over the batch's examples; see `masked_sums`.
    """

    def step(trainable: Packed, rest: nnx.State, batch: Any) -> dict[str, Num[Array, "..."]]:
        states = (trainable.unpack(), rest)
        logits = inference_logits(graphdef, states, batch.images, mean=mean, std=std, mesh=mesh)
        return masked_sums(logits, batch.labels, batch.mask)

    # None keeps the states' shardings.
    shardings = {
        "in_shardings": (None, None, batch_sharding(mesh)),
        "out_shardings": replicated(mesh),
    }
    return jax.jit(with_matmul_precision(step, matmul_precision), **shardings)
