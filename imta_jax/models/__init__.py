"""Multi-exit classifiers: backbones, heads, and the functions that build them."""

from imta_jax.models.build import (
    BACKBONES,
    build_classifier,
    check_model,
    gate_weight_of,
    resolve_model_config,
    with_collaborative_heads,
)
from imta_jax.models.classifier import Backbone, Heads, MultiExitClassifier, run_heads
from imta_jax.models.compute_dtype import dtype_deviations
from imta_jax.models.logits import inference_logits
from imta_jax.models.msdnet_cpu import computes_faster_images_last
from imta_jax.models.optimize import optimize_classifier
from imta_jax.models.presets import NETWORK_PRESETS

__all__ = [
    "BACKBONES",
    "NETWORK_PRESETS",
    "Backbone",
    "Heads",
    "MultiExitClassifier",
    "build_classifier",
    "check_model",
    "computes_faster_images_last",
    "dtype_deviations",
    "gate_weight_of",
    "inference_logits",
    "optimize_classifier",
    "resolve_model_config",
    "run_heads",
    "with_collaborative_heads",
]
