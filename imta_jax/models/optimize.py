"""Faster forms of a classifier: `optimize_classifier`, and the choice of a form for each use.

The result computes the same function up to rounding. It shares all variables with the classifier it
was made from, except for that of `pack_classifier`. Backbones without a form of their own, such as
those from outside the package, are only folded, and their layers get the classifier's
`compute_dtype`.

| use | function | form |
|---|---|---|
| training step | `optimize_for_training` | fused and folded; CHWN on one CPU |
| evaluation | `optimize_for_evaluation` | fused; CHWN and folded on one CPU for small images |
| early exit | `pack_classifier` | fused and folded; weights prepared once; maps as needed |
"""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.distributed import is_single_cpu
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.compute_dtype import follow_compute_dtype
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.msdnet_fused import FusedMSDNet
from imta_jax.models.msdnet_packed import PackedMSDNet
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.cpu.slices import Slices
from imta_jax.nn.fused import fold_all

# Measured in docs/results/cpu.md: in evaluation CHWN takes 0.8 of the time for small images, and as
# long or longer for large ones.
_SMALL_PIXELS = 64 * 64
_CHWN_SLICES = Slices(images=64, parallel=1)
_NHWC_SLICES = Slices(images=16, parallel=2)


def optimize_classifier(
    classifier: MultiExitClassifier,
    *,
    layout: Layout = Layout.NHWC,
    fold_batch_norm: bool = False,
) -> MultiExitClassifier:
    """Returns a classifier over the same variables that computes the same logits faster.

    Call it in the function that is compiled, on the classifier merged there. Training through the
    result updates the running statistics of `classifier`. Choose the mode (`train()`, `eval()`)
    before.

    Args:
      classifier: left unchanged.
      layout: axes of the backbone's maps, where the backbone supports it. CHWN is for one CPU: its
        rows hold pixels of all images, so the batch cannot be split over devices.
      fold_batch_norm: fold batch normalization into the convolution before it wherever it uses
        running statistics.
    """
    optimized = nnx.merge(*nnx.split(classifier))  # new modules, same variables
    optimized.backbone = _optimize_backbone(optimized.backbone, layout, fold_batch_norm)
    follow_compute_dtype(optimized.backbone, jnp.dtype(optimized.compute_dtype))
    return optimized


def pack_classifier(
    classifier: MultiExitClassifier, layout: Layout = Layout.NHWC
) -> MultiExitClassifier:
    """Returns a classifier for inference with early exit, with weights that are prepared once.

    Call it outside the function that is compiled. The state between stages is opaque.

    Args:
      classifier: classifier in inference mode, left unchanged. The kernels get its
        `compute_dtype`.
      layout: axes of the backbone's maps. Only an MSDNet supports CHWN.
    """
    packed = nnx.merge(*nnx.split(classifier))
    backbone = packed.backbone
    dtype = jnp.dtype(packed.compute_dtype)
    if isinstance(backbone, MSDNet):
        packed.backbone = PackedMSDNet(backbone, layout, dtype)
    else:
        follow_compute_dtype(backbone, dtype)
    return packed


def computes_faster_images_last(classifier: MultiExitClassifier) -> bool:
    """Whether one CPU computes batches of a classifier faster in CHWN layout."""
    height, width, _ = classifier.image_shape
    small = height * width <= _SMALL_PIXELS
    return (
        small
        and isinstance(classifier.backbone, MSDNet)
        and classifier.compute_dtype == jnp.float32
    )


def optimize_for_training(classifier: MultiExitClassifier, mesh: Mesh) -> MultiExitClassifier:
    """Returns the form of a classifier that a training step on these devices differentiates."""
    layout = Layout.CHWN if is_single_cpu(mesh) else Layout.NHWC
    return optimize_classifier(classifier, layout=layout, fold_batch_norm=True)


def optimize_for_evaluation(
    classifier: MultiExitClassifier, images_shape: Sequence[int], mesh: Mesh
) -> MultiExitClassifier:
    """Returns the form that computes the logits of all exits on these devices.

    Args:
      classifier: classifier in inference mode.
      images_shape: [N, H, W, C].
      mesh: the devices.
    """
    layout = _evaluation_layout(classifier, images_shape, mesh)
    chwn = layout is Layout.CHWN
    return optimize_classifier(classifier, layout=layout, fold_batch_norm=chwn)


def evaluation_slices(
    classifier: MultiExitClassifier, images_shape: Sequence[int], mesh: Mesh
) -> Slices | None:
    """The slices in which one CPU evaluates a batch; None for other devices."""
    if not is_single_cpu(mesh):
        return None
    layout = _evaluation_layout(classifier, images_shape, mesh)
    return _CHWN_SLICES if layout is Layout.CHWN else _NHWC_SLICES


def _evaluation_layout(
    classifier: MultiExitClassifier, images_shape: Sequence[int], mesh: Mesh
) -> Layout:
    _, height, width, _ = images_shape
    small = height * width <= _SMALL_PIXELS
    supports_chwn = isinstance(classifier.backbone, MSDNet)
    return Layout.CHWN if is_single_cpu(mesh) and small and supports_chwn else Layout.NHWC


def _optimize_backbone(backbone: Backbone, layout: Layout, fold_batch_norm: bool) -> Backbone:
    if isinstance(backbone, MSDNet):
        return FusedMSDNet(backbone, layout, fold_batch_norm)
    if not fold_batch_norm:
        return backbone
    assert isinstance(backbone, nnx.Module)
    return cast(Backbone, fold_all(backbone))
