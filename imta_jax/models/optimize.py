"""Faster forms of a classifier: training, evaluation and inference call `optimize_classifier`.

The result computes the same function up to rounding. It shares all variables with the classifier it
was made from, except with prepared weights. Backbones without a faster form, such as custom ones,
are only folded, and their layers get the classifier's `compute_dtype`.

| use | form |
|---|---|
| training | fused and folded; CHWN on one CPU (`msdnet_cpu`) |
| evaluation | fused; CHWN and folded on one CPU for small images |
| early exit | fused and folded; weights prepared once; maps as needed |
"""

from typing import Literal, cast

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

Use = Literal["training", "evaluation", "early exit"]


def optimize_classifier(
    classifier: MultiExitClassifier,
    use: Use,
    *,
    mesh: Mesh | None = None,
    images_last: bool = False,
) -> MultiExitClassifier:
    """Returns the form of a classifier that is fastest for a use; see `optimized_form`.

    Args:
      classifier: left unchanged, in the mode (`train()`, `eval()`) of the use.
      use: table of this module. "early exit" prepares weights.
      mesh: the devices that train or evaluate. None chooses the form of accelerators.
      images_last: whether early exit computes with the images on the last axis.
    """
    if use == "early exit":
        layout = Layout.CHWN if images_last else Layout.NHWC
        return optimized_form(classifier, layout=layout, prepare_weights=True)
    if mesh is None:
        layout = Layout.NHWC
    elif use == "training":
        layout = training_layout(mesh)
    else:
        layout = evaluation_layout(classifier, mesh)
    folds = use == "training" or layout is Layout.CHWN
    return optimized_form(classifier, layout=layout, fold_batch_norm=folds)


def optimized_form(
    classifier: MultiExitClassifier,
    *,
    layout: Layout = Layout.NHWC,
    fold_batch_norm: bool = False,
    prepare_weights: bool = False,
) -> MultiExitClassifier:
    """Returns a form of a classifier that computes the same logits.

    Without `prepare_weights`, call it in the function that is compiled, on the classifier merged
    there. Training through the result updates the running statistics of `classifier`. Choose the
    mode (`train()`, `eval()`) before.

    Args:
      classifier: left unchanged.
      layout: axes of the backbone's maps; only an MSDNet supports CHWN. It is for one CPU: its rows
        hold pixels of all images, so the batch cannot be split over devices.
      fold_batch_norm: fold batch normalization into the convolution before it wherever it uses
        running statistics.
      prepare_weights: fold and transpose the weights once, into new variables, for inference with
        early exit. Call it outside the function that is compiled, on a classifier in inference
        mode. The state between stages is opaque.
    """
    optimized = nnx.merge(*nnx.split(classifier))  # new modules, same variables
    dtype = jnp.dtype(optimized.compute_dtype)
    backbone = optimized.backbone
    if isinstance(backbone, MSDNet):
        if prepare_weights:
            backbone = PackedMSDNet(backbone, layout, dtype)
        else:
            backbone = FusedMSDNet(backbone, layout, fold_batch_norm)
    elif fold_batch_norm:
        assert isinstance(backbone, nnx.Module)
        backbone = cast(Backbone, fold_all(backbone))
    optimized.backbone = backbone
    follow_compute_dtype(backbone, dtype)
    return optimized
