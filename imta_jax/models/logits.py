"""Logits of all exits for uint8 images: the computation of validation and evaluation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imta_jax.models.classifier import MultiExitClassifier
from imta_jax.models.msdnet_cpu import evaluation_slices
from imta_jax.models.optimize import optimize_classifier
from imta_jax.nn.cpu.slices import map_slices
from imta_jax.nn.pixels import normalize
from imta_jax.types import PerChannel


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
      graphdef: structure of a classifier of any kind, in any mode.
      states: its variables, as returned by `nnx.split`.
      images: uint8 [N, H, W, C].
      mean: per channel, of pixels scaled to 0..1.
      std: per channel, of pixels scaled to 0..1.
      mesh: the devices that run it.
    """

    def logits_of(images: jax.Array) -> jax.Array:
        # Merged within the trace that uses it: a classifier may write its own variables.
        classifier: MultiExitClassifier = nnx.merge(graphdef, *states, copy=True)
        classifier.eval()
        optimized = optimize_classifier(classifier, "evaluation", mesh=mesh)
        return optimized(normalize(images, mean, std))

    slices = evaluation_slices(nnx.merge(graphdef, *states), mesh)
    images = jnp.asarray(images)
    return map_slices(logits_of, images, slices) if slices else logits_of(images)
