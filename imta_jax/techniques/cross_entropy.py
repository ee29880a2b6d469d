"""Cross-entropy, with label smoothing and with mixed labels.

With epsilon the amount of label smoothing and K classes, the loss of an image with the label
distribution t (one-hot, or mixed by mixup or cutmix) and predicted probabilities p is

    (1 - epsilon) * sum_k -t_k log p_k  +  epsilon * mean_k -log p_k

which is the cross-entropy against (1 - epsilon) * t + epsilon / K (Szegedy et al., "Rethinking the
Inception Architecture", CVPR 2016, Sec. 7).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from imta_jax.errors import InputError
from imta_jax.runtime.registry import register_objective


@register_objective("cross_entropy")
def cross_entropy(
    logits: Float[Array | np.ndarray, "*E N K"],
    labels: Integer[Array | np.ndarray, " N"] | Float[Array | np.ndarray, "N K"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "*E"]:
    """Mean cross-entropy over the batch, in nats, float32.

    Args:
      logits: logits with any leading axes, usually one of exits.
      labels: classes, from 0, or the probability of each class.
      label_smoothing: epsilon, 0 to below 1.

    Raises:
      InputError: `label_smoothing` outside its range.
    """
    logits = jnp.asarray(logits, jnp.float32)
    losses = cross_entropy_per_image(logits, labels).mean(axis=-1)
    return add_label_smoothing(losses, logits, label_smoothing)


def add_label_smoothing(
    losses: Float[Array | np.ndarray, "*E"], logits: Float[Array, "*E N K"], label_smoothing: float
) -> Float[Array, "*E"]:
    """Adds label smoothing to the mean cross-entropies of a batch.

    Args:
      losses: mean cross-entropies without label smoothing.
      logits: logits from which `losses` were computed.
      label_smoothing: epsilon, 0 to below 1; 0 returns `losses` unchanged.

    Raises:
      InputError: `label_smoothing` outside its range.
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be at least 0 and below 1; found {label_smoothing}")
    losses = jnp.asarray(losses)
    if label_smoothing == 0:
        return losses
    uniform = -jax.nn.log_softmax(logits).mean(axis=(-2, -1))
    return (1 - label_smoothing) * losses + label_smoothing * uniform


def cross_entropy_per_image(
    logits: Float[Array, "*E N K"],
    labels: Integer[Array | np.ndarray, " N"] | Float[Array | np.ndarray, "N K"],
) -> Float[Array, "*E N"]:
    """Cross-entropy of each image in nats, without label smoothing; see `cross_entropy`."""
    if labels.ndim == 1:
        chex.assert_shape(labels, logits.shape[-2:-1])
        labels = jnp.broadcast_to(labels, logits.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    chex.assert_shape(labels, logits.shape[-2:])
    # 0 log 0 = 0, also for a class that logits of -inf mask.
    log_p = jax.nn.log_softmax(logits)
    probability = jnp.broadcast_to(labels, logits.shape)
    return -jnp.where(probability > 0, probability * log_p, 0.0).sum(axis=-1)
