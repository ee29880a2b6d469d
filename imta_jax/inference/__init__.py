"""Early exit for real: a classifier that computes only the stages its images need."""

from imta_jax.inference.adaptive import AdaptiveClassifier, AdaptivePredictions

__all__ = ["AdaptiveClassifier", "AdaptivePredictions"]
