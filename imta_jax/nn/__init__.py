"""Layers, initialization, convolution, batch normalization and pixel normalization."""
