"""Backbones, and how a classifier is put together from a backbone and heads."""

from imta_jax.models.build import (
    BACKBONES,
    HEAD_STARTS,
    build_classifier,
    check_heads,
    check_model,
    resolve_model_config,
    with_collaborative_heads,
)
from imta_jax.models.classifier import Backbone, Heads, MultiExitClassifier, run_heads
from imta_jax.models.logits import inference_logits
from imta_jax.models.optimize import optimize_classifier
from imta_jax.models.presets import NETWORK_PRESETS

__all__ = [
    "BACKBONES",
    "HEAD_STARTS",
    "NETWORK_PRESETS",
    "Backbone",
    "Heads",
    "MultiExitClassifier",
    "build_classifier",
    "check_heads",
    "check_model",
    "inference_logits",
    "optimize_classifier",
    "resolve_model_config",
    "run_heads",
    "with_collaborative_heads",
]
