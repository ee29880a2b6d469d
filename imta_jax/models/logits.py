"""Logits of all exits for uint8 images: the computation of validation and evaluation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imta_jax.distributed import is_single_cpu
from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.models.optimize import optimize_classifier, supports_layout
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.pixels import normalize
from imta_jax.types import PerChannel


class _CPUPlan(NamedTuple):
    """How one CPU computes a batch so that feature maps fit in its caches.

    Attributes:
      layout: Of the feature maps.
      slice_images: About this many images at a time.
      parallel_slices: Slices computed side by side, so that a core that idles in one has work in
        the other.
    """

    layout: Layout
    slice_images: int
    parallel_slices: int


# Measured in docs/results/cpu.md: CHWN takes 0.8 of the time for small images and as long or
# longer for large ones. Slices take 0.75 of the time for a batch of 256 images.
_SMALL_IMAGES = _CPUPlan(Layout.CHWN, slice_images=64, parallel_slices=1)
_LARGE_IMAGES = _CPUPlan(Layout.NHWC, slice_images=16, parallel_slices=2)
_SMALL_PIXELS = 64 * 64


def inference_logits(
    graphdef: nnx.GraphDef,
    states: Sequence[nnx.State],
    images: np.ndarray | jax.Array,
    *,
    mean: PerChannel,
    std: PerChannel,
    mesh: Mesh,
) -> Float[Array, "E N K"]:
    """Runs a classifier in inference mode; call it under `jax.jit`.

    Args:
      graphdef: Structure of a classifier of any kind, in any mode.
      states: Its variables, as returned by `nnx.split`.
      images: uint8 [N, H, W, C].
      mean: Per channel, of pixels scaled to 0..1.
      std: Per channel, of pixels scaled to 0..1.
      mesh: The devices that run it.
    """
    one_cpu, (height, width) = is_single_cpu(mesh), images.shape[1:3]
    small = height * width <= _SMALL_PIXELS and supports_layout(nnx.merge(graphdef, *states))
    plan = _SMALL_IMAGES if one_cpu and small else _LARGE_IMAGES

    def logits_of(images: jax.Array) -> jax.Array:
        # Merged within the trace that uses it: a classifier may write its own variables.
        classifier: MultiExitClassifier = nnx.merge(graphdef, *states, copy=True)
        classifier.eval()
        chwn = plan.layout is Layout.CHWN
        classifier = optimize_classifier(classifier, layout=plan.layout, fold_batch_norm=chwn)
        return classifier(normalize(images, mean, std))

    images = jnp.asarray(images)
    return _in_slices(logits_of, images, plan) if one_cpu else logits_of(images)


def _in_slices(
    logits_of: Callable[[jax.Array], jax.Array], images: jax.Array, plan: _CPUPlan
) -> jax.Array:
    """Logits [E, N, K] of all images, computed slice by slice."""
    steps = len(images) // (plan.parallel_slices * plan.slice_images)
    if steps < 2:
        return logits_of(images)
    # Slightly larger slices rather than a last one that is nearly empty.
    size = -(-len(images) // (steps * plan.parallel_slices))
    missing = steps * plan.parallel_slices * size - len(images)
    padded = jnp.pad(images, ((0, missing), *((0, 0),) * 3))
    slices = padded.reshape(steps, plan.parallel_slices, size, *images.shape[1:])
    # One call per slice, so that XLA may schedule them independently.
    logits = jax.lax.map(lambda group: jnp.stack([logits_of(part) for part in group]), slices)
    by_exit = logits.transpose(2, 0, 1, 3, 4)  # [E, steps, parallel slices, images, K]
    return by_exit.reshape(len(by_exit), len(padded), -1)[:, : len(images)]
