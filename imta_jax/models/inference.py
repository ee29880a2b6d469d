"""Logits of all exits, of images as they are stored: what validation and evaluation compute."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.pixels import normalize

# On one processor images are computed so many at a time, and two such slices side by side: the
# maps stay in its caches, and where one slice leaves a core idle the other has work. A batch of 256
# takes three quarters of the time, one of 64 0.87 (benchmarks/PROFILE.md).
_SLICE, _LANES = 16, 2


def inference_logits(
    classifier: MultiExitClassifier,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
) -> jax.Array:
    """Puts a classifier in inference mode and runs it, for use under `jax.jit`.

    Args:
      classifier: of any kind.
      images: uint8 [N, H, W, C].
      mean: of the pixels per channel, 0..1.
      std: likewise.
      mesh: the devices that compute.

    Returns:
      [E, N, K] float32.
    """
    classifier.eval()
    graphdef, state = nnx.split(classifier)

    def logits_of(images: jax.Array) -> jax.Array:
        # A copy made where it is used: a classifier may change its own variables while it computes.
        return nnx.merge(graphdef, state, copy=True)(normalize(images, mean, std))

    at_a_time = _LANES * _SLICE
    on_one_processor = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    if not on_one_processor or len(images) < 2 * at_a_time:
        return logits_of(images)
    filled = jnp.pad(images, ((0, -len(images) % at_a_time), *((0, 0),) * 3))
    slices = filled.reshape(-1, _LANES, _SLICE, *images.shape[1:])
    # A lane by itself, not one call for both: they are to be computed independently.
    found = jax.lax.map(lambda lanes: jnp.stack([logits_of(lane) for lane in lanes]), slices)
    by_exit = found.transpose(2, 0, 1, 3, 4)  # [E, slices, lanes, images, K]
    return by_exit.reshape(len(by_exit), len(filled), -1)[:, : len(images)]
