"""The computation of an MSDNet on one CPU: the layout of its maps, and the slices of a batch.

`optimize` makes the forms from these choices. Other devices always compute in NHWC layout and
whole batches. Measured in docs/results/cpu.md.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from imta_jax.distributed import is_single_cpu
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.msdnet import MSDNet
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.cpu.slices import Slices

# In evaluation CHWN takes 0.8 of the time for images up to this size, and as long or longer for
# larger ones.
_SMALL_PIXELS = 64 * 64
# The fastest slices of an evaluation batch, by layout.
_SLICES = {
    Layout.CHWN: Slices(images=64, parallel=1),
    Layout.NHWC: Slices(images=16, parallel=2),
}


def training_layout(mesh: Mesh) -> Layout:
    """The layout in which these devices train."""
    return Layout.CHWN if is_single_cpu(mesh) else Layout.NHWC


def evaluation_layout(backbone: Backbone, images_shape: Sequence[int], mesh: Mesh) -> Layout:
    """The layout in which these devices evaluate.

    Args:
      backbone: backbone of the classifier; only an MSDNet supports CHWN.
      images_shape: [N, H, W, C].
      mesh: the devices.
    """
    small = _is_small(images_shape[1:])
    chwn = is_single_cpu(mesh) and small and isinstance(backbone, MSDNet)
    return Layout.CHWN if chwn else Layout.NHWC


def evaluation_slices(backbone: Backbone, images_shape: Sequence[int], mesh: Mesh) -> Slices | None:
    """The slices in which one CPU evaluates a batch; None for other devices.

    The arguments are those of `evaluation_layout`.
    """
    if not is_single_cpu(mesh):
        return None
    return _SLICES[evaluation_layout(backbone, images_shape, mesh)]


def computes_faster_images_last(classifier: MultiExitClassifier) -> bool:
    """Whether one CPU computes early exit of larger batches faster in CHWN layout."""
    float32 = classifier.compute_dtype == jnp.float32
    return float32 and _is_small(classifier.image_shape) and isinstance(classifier.backbone, MSDNet)


def _is_small(image_shape: Sequence[int]) -> bool:
    height, width, _ = image_shape
    return height * width <= _SMALL_PIXELS
