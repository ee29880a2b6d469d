"""Continuous batching: classification of images as they arrive."""
