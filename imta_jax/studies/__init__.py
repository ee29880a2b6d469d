"""Studies: variants of a config, trained and evaluated over seeds, for the paper's tables.

Names are imported on first use: drawing tables and figures of finished studies does not need JAX.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_BY_MODULE = {
    "StudyConfig": "imta_jax.studies.config",
    "Variant": "imta_jax.studies.variants",
    "is_study": "imta_jax.studies.config",
    "run_study": "imta_jax.studies.runner",
    "study_variants": "imta_jax.studies.variants",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
