"""Multi-exit classifiers: backbones, heads, and the functions that build them.

Names are imported at first use, so that `python -m imta_jax.models` can name a missing package.
"""

from typing import TYPE_CHECKING

from imta_jax.runtime.lazy_imports import lazy_imports

if TYPE_CHECKING:
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

_BY_MODULE = {
    "BACKBONES": "imta_jax.models.build",
    "NETWORK_PRESETS": "imta_jax.models.presets",
    "Backbone": "imta_jax.models.classifier",
    "Heads": "imta_jax.models.classifier",
    "MultiExitClassifier": "imta_jax.models.classifier",
    "build_classifier": "imta_jax.models.build",
    "check_model": "imta_jax.models.build",
    "computes_faster_images_last": "imta_jax.models.msdnet_cpu",
    "dtype_deviations": "imta_jax.models.compute_dtype",
    "gate_weight_of": "imta_jax.models.build",
    "inference_logits": "imta_jax.models.logits",
    "optimize_classifier": "imta_jax.models.optimize",
    "resolve_model_config": "imta_jax.models.build",
    "run_heads": "imta_jax.models.classifier",
    "with_collaborative_heads": "imta_jax.models.build",
}
__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
