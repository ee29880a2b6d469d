"""Logits of all exits, of images as they are stored: what validation and evaluation compute."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.distributed import is_one_processor
from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.nn.cpu.layout import Layout, can_lay_out, lay_out
from imta_jax.nn.pixels import normalize


class _Way(NamedTuple):
    """How a processor computes a batch, so that its maps stay in the caches.

    Attributes:
      layout: of the maps, if the backbone has the choice.
      images: about so many at a time.
      lanes: such slices side by side: where one leaves a core idle the other has work.
    """

    layout: Layout
    images: int
    lanes: int


# Measured in docs/results/cpu.md: small images take 0.8 of the time channels first, photographs
# as long or longer; a batch of 256 takes 0.75 in slices.
_CHANNELS_FIRST = _Way(Layout.CHANNELS_FIRST, images=64, lanes=1)
_IMAGES_FIRST = _Way(Layout.IMAGES_FIRST, images=16, lanes=2)
_SMALL = 64 * 64  # pixels


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
    on_processor, (height, width) = is_one_processor(mesh), images.shape[1:3]
    small = height * width <= _SMALL and can_lay_out(nnx.merge(graphdef, *states).backbone)
    way = _CHANNELS_FIRST if on_processor and small else _IMAGES_FIRST

    def logits_of(images: jax.Array) -> jax.Array:
        # Made where it is used: a classifier may change its own variables while it computes.
        classifier: MultiExitClassifier = nnx.merge(graphdef, *states, copy=True)
        classifier.eval()
        if way.layout is Layout.CHANNELS_FIRST:
            classifier.backbone.set_attributes(folds=True, raise_if_not_found=False)
            lay_out(classifier.backbone, way.layout)
        return classifier(normalize(images, mean, std))

    return _in_slices(logits_of, images, way) if on_processor else logits_of(images)


def _in_slices(
    logits_of: Callable[[jax.Array], jax.Array], images: jax.Array, way: _Way
) -> jax.Array:
    """The logits [E, N, K] of all images, of one slice per lane at a time."""
    rounds = len(images) // (way.lanes * way.images)
    if rounds < 2:
        return logits_of(images)
    # A little more in each slice rather than one that is nearly empty.
    size = -(-len(images) // (rounds * way.lanes))
    missing = rounds * way.lanes * size - len(images)
    filled = jnp.pad(images, ((0, missing), *((0, 0),) * 3))
    slices = filled.reshape(rounds, way.lanes, size, *images.shape[1:])
    # A lane by itself, not one call for both: they are to be computed independently.
    found = jax.lax.map(lambda lanes: jnp.stack([logits_of(lane) for lane in lanes]), slices)
    by_exit = found.transpose(2, 0, 1, 3, 4)  # [E, slices, lanes, images, K]
    return by_exit.reshape(len(by_exit), len(filled), -1)[:, : len(images)]
