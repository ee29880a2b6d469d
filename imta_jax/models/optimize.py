"""Faster forms of a classifier: `optimize_classifier`, and the choice of a form for each use.

The result computes the same function up to rounding. It shares all variables with the classifier it
was made from, except for that of `pack_classifier`. Backbones without a form of their own, such as
those from outside the package, are only folded, and their layers get the classifier's
`compute_dtype`.

| use | function | form |
|---|---|---|
| training step | `optimize_for_training` | fused and folded; CHWN on one CPU (`msdnet_cpu`) |
| evaluation | `optimize_for_evaluation` | fused; CHWN and folded on one CPU for small images |
| early exit | `pack_classifier` | fused and folded; weights prepared once; maps as needed |
"""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.compute_dtype import follow_compute_dtype
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.msdnet_cpu import evaluation_layout, training_layout
from imta_jax.models.msdnet_fused import FusedMSDNet
from imta_jax.models.msdnet_packed import PackedMSDNet
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.fused import fold_all


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


def optimize_for_training(classifier: MultiExitClassifier, mesh: Mesh) -> MultiExitClassifier:
    """Returns the form of a classifier that a training step on these devices differentiates."""
    return optimize_classifier(classifier, layout=training_layout(mesh), fold_batch_norm=True)


def optimize_for_evaluation(
    classifier: MultiExitClassifier, images_shape: Sequence[int], mesh: Mesh
) -> MultiExitClassifier:
    """Returns the form that computes the logits of all exits on these devices.

    Args:
      classifier: classifier in inference mode.
      images_shape: [N, H, W, C].
      mesh: the devices.
    """
    layout = evaluation_layout(classifier.backbone, images_shape, mesh)
    return optimize_classifier(classifier, layout=layout, fold_batch_norm=layout is Layout.CHWN)


def _optimize_backbone(backbone: Backbone, layout: Layout, fold_batch_norm: bool) -> Backbone:
    if isinstance(backbone, MSDNet):
        return FusedMSDNet(backbone, layout, fold_batch_norm)
    if not fold_batch_norm:
        return backbone
    assert isinstance(backbone, nnx.Module)
    return cast(Backbone, fold_all(backbone))
