"""Weights of other implementations: the published PyTorch networks."""

from imta_jax.interop.published import load_published_weights, published_slots, read_weights

__all__ = ["load_published_weights", "published_slots", "read_weights"]
