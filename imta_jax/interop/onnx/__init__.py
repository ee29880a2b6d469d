"""Conversion of traced JAX functions to ONNX."""
