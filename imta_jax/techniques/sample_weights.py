"""Learned sample weights (L2W-DEN, Han et al., "Learning to Weight Samples", ECCV 2022).

At inference, easy images leave early, so each exit should be trained on the images that it will
see. A small network maps the losses l_n = (l_n1, ..., l_nE) of image n to a weight per exit,

    u_n = tanh(V relu(U l_n + a) + b),    w_ne = 1 + scale * (u_ne - mean_e u_ne)

and the training loss is sum_e mean_n w_ne l_ne. The network is trained on the meta loss of a
virtual step (`training.learned_weights`): images go through the exits by confidence as in
adaptive inference, and the meta loss is the cross-entropy of each exit on the images that leave
there.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

# Values of the authors' code for CIFAR.
HIDDEN_WIDTH = 500
SCALE = 0.8
QUOTA = 0.75
LEARNING_RATE = 1e-4


class WeightNetwork(NamedTuple):
    """Parameters of the network that predicts weights; H hidden units."""

    hidden_kernel: Float[Array | np.ndarray, "E H"]
    hidden_bias: Float[Array | np.ndarray, " H"]
    output_kernel: Float[Array | np.ndarray, "H E"]
    output_bias: Float[Array | np.ndarray, " E"]


def new_weight_network(num_exits: int, seed: int) -> WeightNetwork:
    """A random network with PyTorch's default initialization, as in the authors' code."""
    generator = np.random.default_rng(seed)

    def uniform(fan_in: int, *shape: int) -> Float[np.ndarray, "..."]:
        bound = fan_in**-0.5
        return generator.uniform(-bound, bound, shape).astype(np.float32)

    return WeightNetwork(
        uniform(num_exits, num_exits, HIDDEN_WIDTH),
        uniform(num_exits, HIDDEN_WIDTH),
        uniform(HIDDEN_WIDTH, HIDDEN_WIDTH, num_exits),
        uniform(HIDDEN_WIDTH, num_exits),
    )


def sample_weights(
    network: WeightNetwork, losses: Float[Array, "E N"], scale: float = SCALE
) -> Float[Array, "E N"]:
    """Weight of each image at each exit; their mean over the exits of an image is 1.

    Args:
      network: it receives gradients.
      losses: cross-entropies in nats, without a gradient.
      scale: largest deviation from the mean, before the mean is subtracted.
    """
    losses = jax.lax.stop_gradient(losses)
    hidden = jax.nn.relu(losses.T @ network.hidden_kernel + network.hidden_bias[None])
    u = jnp.tanh(hidden @ network.output_kernel + network.output_bias[None]).T
    return 1 + scale * (u - u.mean(axis=0, keepdims=True))


def leaving_counts(num_exits: int, num_images: int, quota: float = QUOTA) -> tuple[int, ...]:
    """Number of images that leave at each exit.

    floor(N q_e) with q_e proportional to quota^e; the last exit takes the others.
    """
    shares = quota ** np.arange(1, num_exits + 1)
    counts = np.floor(num_images * shares / shares.sum()).astype(int)
    counts[-1] = num_images - counts[:-1].sum()
    return tuple(counts.tolist())


def meta_loss(
    logits: Float[Array, "E N K"], labels: Int[Array, " N"], counts: tuple[int, ...]
) -> Float[Array, ""]:
    """Cross-entropy of adaptive inference with fixed numbers of images per exit.

    From the first exit to the last, the given number of the most confident images that are left
    leave. The loss is the sum over exits of the mean cross-entropy of the images that leave there.

    Args:
      logits: logits of all exits.
      labels: classes, from 0.
      counts: images that leave at each exit; see `leaving_counts`.
    """
    chex.assert_equal(sum(counts), len(labels))
    remaining = jnp.ones(labels.shape, bool)
    total = jnp.zeros(())
    for of_exit, count in zip(logits, counts, strict=True):
        confidence = jax.lax.stop_gradient(jax.nn.softmax(of_exit).max(axis=-1))
        order = jnp.argsort(jnp.where(remaining, -confidence, jnp.inf))
        leaves = jnp.zeros(labels.shape, bool).at[order[:count]].set(True)
        remaining &= ~leaves
        nats = optax.softmax_cross_entropy_with_integer_labels(of_exit, labels)
        total += jnp.where(leaves, nats, 0.0).sum() / max(count, 1)
    return total
