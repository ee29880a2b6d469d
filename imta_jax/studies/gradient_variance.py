"""Variance over images of the gradients at each stage's output (paper Sec. 3.1, Eq. 3 and 6).

The gradient of the loss of one image with respect to a stage's output maps is one sample. Its total
variance is the sum, over the elements of the maps, of the variance over images. Without gradient
equilibrium and with uncorrelated losses it equals the sum of the variances that the exits' losses
contribute (Eq. 3). With equilibrium it is at most twice the largest contribution before rescaling
(Eq. 6).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.techniques import cross_entropy
from imta_jax.training.objectives import PhaseOneObjective


class GradientVariance(NamedTuple):
    """Total variances over images.

    Attributes:
      stages: entry i: variance of the gradient of the total loss at the output of stage i.
      losses: entry (i, j): variance of the gradient of exit j's loss there; 0 for j < i.
    """

    stages: Float[np.ndarray, " E"]
    losses: Float[np.ndarray, "E E"]


class _Sums(NamedTuple):
    """Sums over images.

    Attributes:
      count: number of images.
      first: per stage, a pytree of summed gradients [E, H, W, C], one per loss.
      each_second: summed squares per stage and loss.
      total_second: summed squares of the total loss's gradient, per stage.
    """

    count: Float[Array, ""]
    first: list[Any]
    each_second: Float[Array, "E E"]
    total_second: Float[Array, " E"]


def gradient_variance(
    classifier: MultiExitClassifier,
    objective: PhaseOneObjective,
    batches: Iterable[tuple[Float[Array, "N H W C"], Int[Array, " N"]]],
) -> GradientVariance:
    """Measures the variance of gradients over the images of some batches.

    Batch normalization uses batch statistics, as in training. The classifier is not changed.

    Args:
      classifier: a phase-I classifier at any point of its training.
      objective: objective whose gradient equilibrium and combination of losses are measured.
      batches: normalized images and labels; at least two images in total.

    Returns:
      The variances.

    Raises:
      ValueError: `batches` is empty.
    """
    graphdef, state = nnx.split(classifier)

    @jax.jit
    def batch_sums(state: nnx.State, images: jax.Array, labels: jax.Array) -> _Sums:
        network = nnx.merge(graphdef, state, copy=True)
        network.train()
        return _sums(network, objective, images, labels)

    parts = [batch_sums(state, images, labels) for images, labels in batches]
    if not parts:
        raise InputError("batches is empty; expected at least one batch")
    total = jax.tree.map(lambda *leaves: sum(np.asarray(x, np.float64) for x in leaves), *parts)
    return _variances(total)


def _loss_weight(objective: PhaseOneObjective, num_exits: int) -> float:
    """The weight of each exit's loss in the total loss."""
    return 1.0 if objective.exit_losses == "sum" else 1.0 / num_exits


def _sums(
    network: MultiExitClassifier, objective: PhaseOneObjective, images: jax.Array, labels: jax.Array
) -> _Sums:
    """The sums over one batch."""
    k, count = network.num_exits, len(labels)
    shapes = jax.eval_shape(lambda x: _stage_outputs(network, x), images)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    _, pull_back = jax.vjp(lambda added: _losses(network, objective, images, labels, added), zeros)
    # The loss is a mean over the batch. Multiplied by the batch size, the slice of each image is
    # the gradient of that image's own loss.
    weights = count * jnp.eye(k) * _loss_weight(objective, k)
    (each,) = jax.vmap(pull_back)(weights)  # Per stage: maps [E, N, H, W, C].
    total = jax.tree.map(lambda g: g.sum(axis=0), each)
    return _Sums(
        jnp.float32(count),
        jax.tree.map(lambda g: g.sum(axis=1), each),
        jnp.stack([_squares(stage, (1, 2, 3, 4)) for stage in each]),
        jnp.stack([_squares(stage, None) for stage in total]),
    )


def _squares(maps: Any, axes: tuple[int, ...] | None) -> jax.Array:
    return sum((jnp.square(g).sum(axis=axes) for g in jax.tree.leaves(maps)), jnp.float32(0))


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
) -> Float[Array, " E"]:
    """The exits' losses, with `added` (zeros) added to the stages' outputs.

    The gradient with respect to `added` is the gradient with respect to the outputs.
    """
    network = nnx.clone(network)  # Within the trace, so that batch statistics may be updated.

    def add(i: int, state: Any) -> Any:
        return jax.tree.map(jnp.add, state, added[i])

    features = network.features(
        images, objective.equilibrium, detachment=objective.detachment, tap=add
    )
    return cross_entropy(network.logits(features), labels)


def _variances(total: _Sums) -> GradientVariance:
    """Mean of squares minus square of the mean, with n - 1 degrees of freedom."""
    n = total.count
    stages = [jax.tree.leaves(stage) for stage in total.first]
    each = [sum(np.square(g).sum(axis=(1, 2, 3)) for g in leaves) for leaves in stages]
    summed = [sum(np.square(g.sum(axis=0)).sum() for g in leaves) for leaves in stages]
    each_mean, total_mean = np.array(each) / n**2, np.array(summed) / n**2
    correction = n / (n - 1)
    return GradientVariance(
        np.asarray((total.total_second / n - total_mean) * correction),
        np.asarray((total.each_second / n - each_mean) * correction),
    )
