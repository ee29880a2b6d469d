"""The one place where a classifier gets a faster form: `optimize_classifier`.

The result shares all variables with the classifier it was made from and computes the same function
up to rounding. Backbones without a form of their own, such as those from outside the package, are
only folded or returned unchanged.

| caller | form |
|---|---|
| training step (`training.step`) | fused, frozen batch normalization folded; CHWN on one CPU |
| evaluation (`models.logits`) | fused; CHWN and folded on one CPU for small images |
| inference (`inference.engine`) | fused and lazy |
"""

from typing import cast

from flax import nnx

from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.msdnet_fused import FusedMSDNet
from imta_jax.models.msdnet_lazy import LazyMSDNet
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.fused import fold_all


def optimize_classifier(
    classifier: MultiExitClassifier,
    *,
    layout: Layout = Layout.NHWC,
    fold_batch_norm: bool = False,
    lazy: bool = False,
) -> MultiExitClassifier:
    """Returns a classifier over the same variables that computes the same logits faster.

    Call it in the function that is compiled, on the classifier merged there. Training through the
    result updates the running statistics of `classifier`. Choose the mode (`train()`, `eval()`)
    before.

    Args:
      classifier: Left unchanged.
      layout: Of the backbone's maps, where the backbone supports it. CHWN serves one CPU only: its
        rows hold pixels of all images, so the batch cannot be split over devices.
      fold_batch_norm: Fold batch normalization into the convolution before it wherever it uses
        running statistics.
      lazy: Compute the maps that only later exits need when these run, for stage-by-stage inference
        with early exit. The state between stages is then opaque.
    """
    optimized = nnx.merge(*nnx.split(classifier))  # new modules, same variables
    optimized.backbone = _optimize_backbone(optimized.backbone, layout, fold_batch_norm, lazy)
    return optimized


def supports_layout(classifier: MultiExitClassifier) -> bool:
    """Whether the backbone can keep its maps in CHWN."""
    return isinstance(classifier.backbone, MSDNet)


def _optimize_backbone(
    backbone: Backbone, layout: Layout, fold_batch_norm: bool, lazy: bool
) -> Backbone:
    if isinstance(backbone, MSDNet):
        form = LazyMSDNet if lazy else FusedMSDNet
        return form(backbone, layout, fold_batch_norm)
    if not fold_batch_norm:
        return backbone
    assert isinstance(backbone, nnx.Module)
    return cast(Backbone, fold_all(backbone))
