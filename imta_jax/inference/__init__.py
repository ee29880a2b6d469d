"""Adaptive inference: early exit, streams of images, and export of trained networks.

Names are imported at first use, so that an exported network runs without Flax and without the code
of models and training.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_BY_MODULE = {
    "AdaptiveClassifier": "imta_jax.inference.adaptive",
    "AdaptivePredictions": "imta_jax.inference.adaptive",
    "AdaptiveStream": "imta_jax.inference.stream.stream",
    "Audit": "imta_jax.inference.monitoring.audit",
    "AuditReport": "imta_jax.inference.monitoring.audit",
    "DriftMonitor": "imta_jax.inference.monitoring.drift",
    "DriftStatus": "imta_jax.inference.monitoring.drift",
    "ExportedClassifier": "imta_jax.inference.export.loader",
    "NewThresholds": "imta_jax.inference.monitoring.audit",
    "OperatingPoint": "imta_jax.evaluation.operating_points",
    "StageProfile": "imta_jax.inference.engine.profile",
    "StagedNetwork": "imta_jax.inference.engine.staged",
    "StreamMonitor": "imta_jax.inference.monitoring.stream_monitor",
    "StreamPredictions": "imta_jax.inference.stream.request",
    "StreamStatistics": "imta_jax.inference.stream.statistics",
    "export_classifier": "imta_jax.inference.export.writer",
    "export_run": "imta_jax.inference.export.run_export",
    "load_exported": "imta_jax.inference.export.loader",
    "staged_classifier": "imta_jax.inference.engine.classifier_stages",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
