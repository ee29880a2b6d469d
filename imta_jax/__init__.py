"""Adaptive (early-exit) image classification in JAX.

Train multi-exit networks with gradient equilibrium, inline subnetwork collaboration and one-for-all
distillation (Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019), and
run them so that easy images leave early.

Folders, lowest layer first: `runtime`, `nn`, `techniques`, `data`, `models`, `training`, `interop`,
`pretrained`, `evaluation`, `inference`, `report`, `studies`, `planning`, `cli`.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_REGISTRY = "imta_jax.runtime.registry"

__all__ = [
    "register_backbone",
    "register_exit_rule",
    "register_heads",
    "register_metrics_writer",
    "register_objective",
    "register_optimizer",
    "register_schedule",
    "register_source",
    "shipped_config",
    "wrap",
]

# Imported at first use: some need packages that many uses of this package do not.
_BY_MODULE = {
    **dict.fromkeys([name for name in __all__ if name.startswith("register_")], _REGISTRY),
    "shipped_config": "imta_jax.runtime.shipped_configs",
    "wrap": "imta_jax.models.wrapped",
}
__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)

__version__ = "0.1.0"
