"""Early exit for real: a classifier that computes only the stages its images need; export.

Names are imported when they are first asked for: what runs an exported network needs neither Flax
nor the code of models and training.
"""

import importlib
from typing import Any

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

__all__ = [
    "AdaptiveClassifier",
    "AdaptivePredictions",
    "AdaptiveStream",
    "ExportedClassifier",
    "OperatingPoint",
    "StageProfile",
    "StagedNetwork",
    "StreamAnswers",
    "StreamStatistics",
    "export_classifier",
    "export_run",
    "load_exported",
    "staged_classifier",
]


def __getattr__(name: str) -> Any:
    """Imports the module that has the name (PEP 562)."""
    if name not in _BY_MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_BY_MODULE[name]}"), name)
