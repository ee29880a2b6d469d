"""Early exit for real: a classifier that computes only the stages its images need."""

from imta_jax.inference.adaptive import AdaptiveClassifier, AdaptivePredictions
from imta_jax.inference.profile import StageProfile
from imta_jax.inference.requests import StreamAnswers
from imta_jax.inference.stream import AdaptiveStream, StreamStatistics

__all__ = [
    "AdaptiveClassifier",
    "AdaptivePredictions",
    "AdaptiveStream",
    "StageProfile",
    "StreamAnswers",
    "StreamStatistics",
]
