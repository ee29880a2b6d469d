"""Studies: variants x seeds, trained and evaluated by one command, for the paper's tables.

Names are imported on first use: drawing tables and figures of finished studies needs no JAX.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_BY_MODULE = {
    "Arm": "imta_jax.studies.variants",
    "is_study": "imta_jax.studies.variants",
    "run_study": "imta_jax.studies.runner",
    "study_arms": "imta_jax.studies.variants",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
