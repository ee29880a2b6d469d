"""Continuous batching: requests, workers and the stream that serves them."""
