"""Early exit for real: a classifier that computes only the stages its images need; export.

Names are imported when they are first asked for: what runs an exported network needs neither Flax
nor the code of models and training.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_BY_MODULE = {
    "AdaptiveClassifier": "imta_jax.inference.adaptive",
    "AdaptivePredictions": "imta_jax.inference.adaptive",
    "AdaptiveStream": "imta_jax.inference.stream.stream",
    "ExportedClassifier": "imta_jax.inference.export.loader",
    "OperatingPoint": "imta_jax.evaluation.operating_points",
    "StageProfile": "imta_jax.inference.engine.profile",
    "StagedNetwork": "imta_jax.inference.engine.staged",
    "StreamAnswers": "imta_jax.inference.stream.request_queue",
    "StreamStatistics": "imta_jax.inference.stream.stream",
    "export_classifier": "imta_jax.inference.export.writer",
    "export_run": "imta_jax.inference.export.run_export",
    "load_exported": "imta_jax.inference.export.loader",
    "staged_classifier": "imta_jax.inference.engine.classifier_stages",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
