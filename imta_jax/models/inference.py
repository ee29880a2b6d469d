"""Logits of all exits, of images as they are stored: what validation and evaluation compute."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.parallel import is_one_processor
from imta_jax.pixels import normalize

# On one processor about so many images are computed at a time, and two such slices side by side:
# the maps stay in its caches, and where one slice leaves a core idle the other has work. A batch of
# 256 takes three quarters of the time, one of 64 takes 0.87 (benchmarks/PROFILE.md).
_SLICE, _LANES = 16, 2


def inference_logits(
    graphdef: nnx.GraphDef,
    states: Sequence[nnx.State],
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
) -> jax.Array:
    """Runs a classifier in inference mode, for use under `jax.jit`.

    Args:
      graphdef: the structure of a classifier of any kind, in any mode.
      states: its variables, as `nnx.split` gave them.
      images: uint8 [N, H, W, C].
      mean: of the pixels per channel, 0..1.
      std: likewise.
      mesh: the devices that compute.

    Returns:
      [E, N, K] float32.
    """

    def logits_of(images: jax.Array) -> jax.Array:
        # Made where it is used: a classifier may change its own variables while it computes.
        classifier: MultiExitClassifier = nnx.merge(graphdef, *states, copy=True)
        classifier.eval()
        return classifier(normalize(images, mean, std))

    rounds = len(images) // (_LANES * _SLICE)
    if not is_one_processor(mesh) or rounds < 2:
        return logits_of(images)
    # A little more in each slice rather than one that is nearly empty.
    size = -(-len(images) // (rounds * _LANES))
    missing = rounds * _LANES * size - len(images)
    filled = jnp.pad(images, ((0, missing), *((0, 0),) * 3))
    slices = filled.reshape(rounds, _LANES, size, *images.shape[1:])
    # A lane by itself, not one call for both: they are to be computed independently.
    found = jax.lax.map(lambda lanes: jnp.stack([logits_of(lane) for lane in lanes]), slices)
    by_exit = found.transpose(2, 0, 1, 3, 4)  # [E, slices, lanes, images, K]
    return by_exit.reshape(len(by_exit), len(filled), -1)[:, : len(images)]
