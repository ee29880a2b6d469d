"""The compiled steps: of training, for any objective, phase and input, and of validation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.data.pipeline.on_device import OnDeviceIndices, OnDeviceSplit, on_device_batch
from imta_jax.distributed import is_one_processor, replicated, split_batches, split_over_batch
from imta_jax.models import inference_logits, optimize_classifier
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.pixels import normalize
from imta_jax.training.objectives import ExitMetrics, Objective, masked_sums
from imta_jax.training.packing import Packed
from imta_jax.training.state import TrainState
from imta_jax.types import Batch

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, ExitMetrics]]
ResidentStep = Callable[
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
    """One step of training, a pure function to be compiled; nothing in it waits for the host.

    Args:
      graphdef: the classifier's structure, split in the modes the objective wants.
      objective: see `objectives.Objective`.
      trainable: the NNX filter that `create_state` was given; only these get a gradient.
      tx: the optimiser.
      mean: mean of the pixels per channel, in 0..1.
      std: standard deviation of the pixels per channel, in 0..1.
      mesh: the devices that run it.
      accumulate_parts: number of parts of the batch that are computed one after the other to save
        memory. Gradients are the mean over parts; BatchNorm sees one part at a time.

    Returns:
      (state, batch) -> (state, metrics).
    """

    def loss_of(
        params: nnx.State, rest: nnx.State, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[ExitMetrics, nnx.State]]:
        classifier = nnx.merge(graphdef, params, rest, copy=True)
        layout = Layout.CHWN if is_one_processor(mesh) else Layout.NHWC
        optimized = optimize_classifier(classifier, layout=layout, fold_batch_norm=True)
        loss, metrics = objective(optimized, normalize(images, mean, std), labels)
        _, _, rest = nnx.split(classifier, trainable, ...)
        return loss, (metrics, rest)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        params = state.trainable.unpack()
        (loss, (metrics, rest)), grads = _in_parts(
            lambda rest, *part: value_and_grad(params, rest, *part),
            state.rest,
            (batch.images, batch.labels),
            accumulate_parts,
        )
        grads = state.trainable.packing.pack(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        params = optax.apply_updates(state.trainable, updates)
        advanced = TrainState(state.step + 1, params, rest, opt_state, state.halted_at)
        return _advance_if_finite(state, advanced, (loss, grads)), metrics

    return step


def _in_parts(
    gradients_of: Callable[..., Any], rest: nnx.State, batch: tuple[jax.Array, ...], parts: int
) -> Any:
    """((loss, (metrics, rest)), gradients) of a batch as the mean over equal parts of it."""
    if parts == 1:
        return gradients_of(rest, *batch)

    def one(carry: tuple[nnx.State, Any], part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        rest, total = carry
        (loss, (metrics, rest)), grads = gradients_of(rest, *part)
        return (rest, jax.tree.map(jnp.add, total, (loss, metrics, grads))), None

    # Every parts-th row, so that each device finds its rows of each part where they are.
    split = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in batch]
    shapes = jax.eval_shape(gradients_of, rest, *(x[0] for x in split))
    (loss, (metrics, _)), grads = shapes
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, metrics, grads))
    (rest, total), _ = jax.lax.scan(one, (rest, zeros), tuple(split))
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, total)
    return (loss, (metrics, rest)), grads


def on_batches(step: TrainStep, mesh: Mesh, state: TrainState | None = None) -> TrainStep:
    """Compiles (on first use) a step that takes a batch from the host; the state is donated.

    Args:
      step: see `train_step`.
      mesh: the devices.
      state: one that lies where states are to lie; None for whole on every device.
    """
    places, split = _places(state, mesh), split_over_batch(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, split),
        out_shardings=(places, replicated(mesh)),
    )


def _places(state: TrainState | None, mesh: Mesh) -> Any:
    return replicated(mesh) if state is None else jax.tree.map(lambda x: x.sharding, state)


def on_resident(step: TrainStep, mesh: Mesh, state: TrainState | None = None) -> ResidentStep:
    """Compiles (on first use) many steps on images that live on the device, in one dispatch.

    Args:
      step: see `train_step`.
      mesh: the devices.
      state: as for `on_batches`.

    Returns:
      (state, split, rows) -> (state, metrics with a leading axis of S steps, zeros beyond
      `rows.steps`); the state that goes in is donated.
    """

    def steps(
        state: TrainState, split: OnDeviceSplit, rows: OnDeviceIndices
    ) -> tuple[TrainState, ExitMetrics]:
        def advance(i: jax.Array, carry: tuple[TrainState, ExitMetrics]):
            state, metrics = carry
            state, found = step(state, _batch_of(split, rows, i))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, found)

        if len(rows.index) == 1:  # no loop: compilers do less within one
            state, found = step(state, _batch_of(split, rows, 0))
            return state, jax.tree.map(lambda one: one[None], found)
        one = jax.eval_shape(lambda s: step(s, _batch_of(split, rows, 0))[1], state)
        none = jax.tree.map(lambda x: jnp.zeros((len(rows.index), *x.shape), x.dtype), one)
        return jax.lax.fori_loop(0, rows.steps, advance, (state, none))

    whole, split, places = replicated(mesh), split_batches(mesh), _places(state, mesh)
    return jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(places, whole, OnDeviceIndices(split, split, split, whole)),
        out_shardings=(places, whole),
    )


def _batch_of(split: OnDeviceSplit, rows: OnDeviceIndices, i: jax.Array | int) -> Batch:
    return on_device_batch(split, rows.index[i], rows.corner[i], rows.flip[i])


def _advance_if_finite(before: TrainState, after: TrainState, found: Any) -> TrainState:
    """`after`; `before`, marked as halted, if `found` is not finite; `before` if it was halted."""
    running = before.halted_at < 0
    # Not the norm: that of large but finite gradients overflows.
    flags = [running, *(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))]
    # The first that is false, behind the last. Not flags.all(): XLA makes it a chain of ands and
    # copies that into every array it guards, so that compiling takes time with the square of their
    # number.
    advances = jnp.argmin(jnp.stack([*flags, jnp.array(False)])) == len(flags)
    halted_at = jnp.where(running & ~advances, before.step, before.halted_at)
    marked = TrainState(before.step, before.trainable, before.rest, before.opt_state, halted_at)
    return jax.tree.map(lambda new, old: jax.lax.select(advances, new, old), after, marked)


def make_eval_step(
    graphdef: nnx.GraphDef, *, mean: Sequence[float], std: Sequence[float], mesh: Mesh
) -> Callable[[Packed, nnx.State, Batch], dict[str, jax.Array]]:
    """Compiles validation of one batch: (trainable, rest, batch) -> sums over its real examples.

    Args:
      graphdef: the classifier's structure; it is put in inference mode.
      mean: of the pixels per channel, 0..1.
      std: likewise.
      mesh: batches are split over it.
    """

    def step(trainable: Packed, rest: nnx.State, batch: Batch) -> dict[str, jax.Array]:
        states = (trainable.unpack(), rest)
        logits = inference_logits(graphdef, states, batch.images, mean=mean, std=std, mesh=mesh)
        return masked_sums(logits, batch.labels, batch.mask)

    # The states stay where they are.
    shardings = {
        "in_shardings": (None, None, split_over_batch(mesh)),
        "out_shardings": replicated(mesh),
    }
    return jax.jit(step, **shardings)
