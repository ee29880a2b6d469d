"""The early-exit engine: compiled segments, batch plans and measured profiles."""
