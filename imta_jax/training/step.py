"""The compiled steps: of training, for any objective, phase and input, and of validation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.data.resident import ResidentRows, ResidentSplit, resident_batch
from imta_jax.models import MultiExitClassifier
from imta_jax.parallel import replicated, split_batches, split_over_batch
from imta_jax.pixels import normalize
from imta_jax.training.objectives import ExitMetrics, Objective, masked_sums
from imta_jax.training.state import TrainState
from imta_jax.types import Batch

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, ExitMetrics]]
ResidentStep = Callable[[TrainState, ResidentSplit, ResidentRows], tuple[TrainState, ExitMetrics]]


def train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    trainable: Any,
    tx: optax.GradientTransformation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> TrainStep:
    """One step of training, a pure function to be compiled; nothing in it waits for the host.

    Args:
      graphdef: the classifier's structure, split in the modes the objective wants.
      objective: see `objectives.Objective`.
      trainable: the NNX filter that `create_state` was given; only these get a gradient.
      tx: the optimiser.
      mean: of the pixels per channel, 0..1.
      std: likewise.

    Returns:
      (state, batch) -> (state, metrics).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        images = normalize(batch.images, mean, std)

        def loss_of(params: nnx.State) -> tuple[jax.Array, tuple[ExitMetrics, nnx.State]]:
            classifier = nnx.merge(graphdef, params, state.rest, copy=True)
            loss, metrics = objective(classifier, images, batch.labels)
            _, _, rest = nnx.split(classifier, trainable, ...)
            return loss, (metrics, rest)

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (metrics, rest)), grads = value_and_grad(state.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        params = optax.apply_updates(state.trainable, updates)
        advanced = TrainState(state.step + 1, params, rest, opt_state, state.halted_at)
        return _advance_if_finite(state, advanced, _all_finite((loss, grads))), metrics

    return step


def on_batches(step: TrainStep, mesh: Mesh) -> TrainStep:
    """Compiles (on first use) a step that takes a batch from the host; the state is donated."""
    whole, split = replicated(mesh), split_over_batch(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(whole, split), out_shardings=(whole, whole)
    )


def on_resident(step: TrainStep, mesh: Mesh) -> ResidentStep:
    """Compiles (on first use) many steps on images that live on the device, in one dispatch.

    Returns:
      (state, split, rows) -> (state, metrics with a leading axis of S steps, zeros beyond
      `rows.steps`); the state that goes in is donated.
    """

    def steps(
        state: TrainState, split: ResidentSplit, rows: ResidentRows
    ) -> tuple[TrainState, ExitMetrics]:
        def advance(i: jax.Array, carry: tuple[TrainState, ExitMetrics]):
            state, metrics = carry
            state, found = step(state, _batch_of(split, rows, i))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, found)

        one = jax.eval_shape(lambda s: step(s, _batch_of(split, rows, 0))[1], state)
        none = jax.tree.map(lambda x: jnp.zeros((len(rows.index), *x.shape), x.dtype), one)
        if len(rows.index) == 1:  # no loop: compilers do less within one
            return advance(jnp.int32(0), (state, none))
        return jax.lax.fori_loop(0, rows.steps, advance, (state, none))

    whole, split = replicated(mesh), split_batches(mesh)
    return jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(whole, whole, ResidentRows(split, split, split, whole)),
        out_shardings=(whole, whole),
    )


def _batch_of(split: ResidentSplit, rows: ResidentRows, i: jax.Array | int) -> Batch:
    return resident_batch(split, rows.index[i], rows.corner[i], rows.flip[i])


def _all_finite(tree: Any) -> jax.Array:
    # Not the norm: that of large but finite gradients overflows.
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _advance_if_finite(before: TrainState, after: TrainState, finite: jax.Array) -> TrainState:
    """`after`, or `before` marked as halted, or `before` if it was halted already."""
    running = before.halted_at < 0
    halted_at = jnp.where(running & ~finite, before.step, before.halted_at)
    marked = TrainState(before.step, before.trainable, before.rest, before.opt_state, halted_at)
    return jax.tree.map(lambda new, old: jnp.where(running & finite, new, old), after, marked)


def make_eval_step(
    graphdef: nnx.GraphDef, *, mean: Sequence[float], std: Sequence[float], mesh: Mesh
) -> Callable[[tuple[nnx.State, ...], Batch], dict[str, jax.Array]]:
    """Compiles validation of one batch: (states, batch) -> sums over its real examples.

    Args:
      graphdef: the classifier's structure; it is put in inference mode.
      mean: of the pixels per channel, 0..1.
      std: likewise.
      mesh: batches are split over it.
    """

    def step(states: tuple[nnx.State, ...], batch: Batch) -> dict[str, jax.Array]:
        classifier: MultiExitClassifier = nnx.merge(graphdef, *states, copy=True)
        classifier.eval()
        logits = classifier(normalize(batch.images, mean, std))
        return masked_sums(logits, batch.labels, batch.mask)

    whole, split = replicated(mesh), split_over_batch(mesh)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=whole)
