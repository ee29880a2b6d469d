"""The computation of an MSDNet on one CPU: the layout of its maps, and the slices of a batch.

`optimize` makes the forms from these choices. Other devices always compute in NHWC layout and
whole batches. Measured in docs/results/cpu.md.
"""

import jax.numpy as jnp
from jax.sharding import Mesh

from imta_jax.distributed import is_single_cpu
from imta_jax.models.classifier import MultiExitClassifier
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


def evaluation_layout(classifier: MultiExitClassifier, mesh: Mesh) -> Layout:
    """The layout in which these devices evaluate; only an MSDNet supports CHWN."""
    chwn = is_single_cpu(mesh) and _is_small_msdnet(classifier)
    return Layout.CHWN if chwn else Layout.NHWC


def evaluation_slices(classifier: MultiExitClassifier, mesh: Mesh) -> Slices | None:
    """The slices in which one CPU evaluates a batch; None for other devices."""
    if not is_single_cpu(mesh):
        return None
    return _SLICES[evaluation_layout(classifier, mesh)]


def computes_faster_images_last(classifier: MultiExitClassifier) -> bool:
    """Whether one CPU computes early exit of larger batches faster in CHWN layout."""
    return classifier.compute_dtype == jnp.float32 and _is_small_msdnet(classifier)


def _is_small_msdnet(classifier: MultiExitClassifier) -> bool:
    height, width, _ = classifier.image_shape
    return height * width <= _SMALL_PIXELS and isinstance(classifier.backbone, MSDNet)
