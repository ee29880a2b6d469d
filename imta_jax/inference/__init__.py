"""Early exit for real: a classifier that computes only the stages its images need; export.

Names are imported when they are first asked for: what runs an exported network needs neither Flax
nor the code of models and training.
"""

from imta_jax.lazy_names import lazy_names

_BY_MODULE = {
    "AdaptiveClassifier": "adaptive",
    "AdaptivePredictions": "adaptive",
    "AdaptiveStream": "stream",
    "ExportedClassifier": "exported",
    "OperatingPoint": "operating_points",
    "StageProfile": "profile",
    "StagedNetwork": "staged",
    "StreamAnswers": "requests",
    "StreamStatistics": "stream",
    "export_classifier": "classifier_export",
    "export_run": "export",
    "load_exported": "exported",
    "staged_classifier": "classifier_stages",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_names(__name__, _BY_MODULE)
