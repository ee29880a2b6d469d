"""How much gradients vary at each stage of a network: what Eq. 3 and 6 of the paper speak of.

Per image, the gradient of the loss with respect to the maps that a stage hands on is one draw; its
total variance is the sum over the maps' elements of the variance over images. Eq. 3 says that
without gradient equilibrium it is the sum of the variances that the exits contribute, if these were
uncorrelated; Eq. 6 bounds it under equilibrium by twice the largest contribution before rescaling.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.models import MultiExitClassifier
from imta_jax.techniques import cross_entropy
from imta_jax.training.objectives import PhaseOneObjective


class GradientVariance(NamedTuple):
    """Total variances over images.

    Attributes:
      stages: [E], of the summed (or averaged) loss's gradient with respect to what stage i hands
        on.
      losses: [E, E], row i: of what each exit's loss alone contributes there; 0 before the stage.
    """

    stages: np.ndarray
    losses: np.ndarray


class _Sums(NamedTuple):
    """Over images: of gradients per stage and loss (maps [E, H, W, C]), and of their squares."""

    count: jax.Array
    first: list[Any]
    each_second: jax.Array
    all_second: jax.Array


def gradient_variance(
    classifier: MultiExitClassifier,
    objective: PhaseOneObjective,
    batches: Iterable[tuple[jax.Array, jax.Array]],
) -> GradientVariance:
    """Measures how much gradients vary over the images of some batches.

    Batches are normalized by their own statistics, as in training; the classifier is left as it is.

    Args:
      classifier: a phase-I one, at any point of its training.
      objective: its reach of gradient equilibrium and its way of joining losses are those measured.
      batches: of normalized images [N, H, W, C] and labels [N]; two images at the least.

    Raises:
      ValueError: no batches.
    """
    graphdef, state = nnx.split(classifier)

    @jax.jit
    def sums_of(state: nnx.State, images: jax.Array, labels: jax.Array) -> _Sums:
        network = nnx.merge(graphdef, state, copy=True)
        network.train()
        return _sums(network, objective, images, labels)

    parts = [sums_of(state, images, labels) for images, labels in batches]
    if not parts:
        raise ValueError("no batches to measure gradients on; expected at least one")
    total = jax.tree.map(lambda *leaves: sum(np.asarray(x, np.float64) for x in leaves), *parts)
    return _variances(total)


def _weight(objective: PhaseOneObjective, num_exits: int) -> float:
    """Of each exit's loss in the whole."""
    return 1.0 if objective.exit_losses == "sum" else 1.0 / num_exits


def _sums(
    network: MultiExitClassifier, objective: PhaseOneObjective, images: jax.Array, labels: jax.Array
) -> _Sums:
    """One batch's part of the sums."""
    k, count = network.num_exits, len(labels)
    shapes = jax.eval_shape(lambda x: _stage_outputs(network, x), images)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    _, pull_back = jax.vjp(lambda added: _losses(network, objective, images, labels, added), zeros)
    # The loss is a mean over the batch: times its size, each row is one image's gradient.
    (each,) = jax.vmap(pull_back)(count * jnp.eye(k) * _weight(objective, k))  # [E, N, H, W, C]
    whole = jax.tree.map(lambda g: g.sum(axis=0), each)
    return _Sums(
        jnp.float32(count),
        jax.tree.map(lambda g: g.sum(axis=1), each),
        jnp.stack([_squares(stage, (1, 2, 3, 4)) for stage in each]),
        jnp.stack([_squares(stage, None) for stage in whole]),
    )


def _squares(maps: Any, axes: tuple[int, ...] | None) -> jax.Array:
    return sum(jnp.square(g).sum(axis=axes) for g in jax.tree.leaves(maps))


def _stage_outputs(network: MultiExitClassifier, images: jax.Array) -> list[Any]:
    outputs = []

    def record(i: int, state: Any) -> Any:
        outputs.append(state)
        return state

    nnx.clone(network).features(images, tap=record)
    return outputs


def _losses(
    network: MultiExitClassifier,
    objective: PhaseOneObjective,
    images: jax.Array,
    labels: jax.Array,
    added: list[Any],
) -> jax.Array:
    """Losses [E], with `added` (zeros, to differentiate by) added to what each stage hands on."""
    network = nnx.clone(network)  # within the trace, so that its statistics may move

    def add(i: int, state: Any) -> Any:
        return jax.tree.map(jnp.add, state, added[i])

    features = network.features(images, objective.equilibrium, tap=add)
    return cross_entropy(network.logits(features), labels)


def _variances(total: _Sums) -> GradientVariance:
    """Mean square minus square mean, summed over elements, with n - 1 degrees of freedom."""
    n = total.count
    each_mean = np.array(
        [sum(np.square(g).sum(axis=(1, 2, 3)) for g in jax.tree.leaves(stage)) / n**2
         for stage in total.first]
    )  # fmt: skip
    all_mean = np.array(
        [sum(np.square(g.sum(axis=0)).sum() for g in jax.tree.leaves(stage)) / n**2
         for stage in total.first]
    )  # fmt: skip
    correction = n / (n - 1)
    return GradientVariance(
        (total.all_second / n - all_mean) * correction,
        (total.each_second / n - each_mean) * correction,
    )
