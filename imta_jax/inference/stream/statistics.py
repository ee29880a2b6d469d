"""Latencies and batch sizes of a stream."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

# Number of latest images over which percentiles are computed.
_WINDOW = 100_000


class StreamStatistics(NamedTuple):
    """Statistics of a stream since its start.

    Attributes:
      completed: images classified.
      late: images classified after their deadline.
      p50_ms: median latency from submission to prediction, in milliseconds, of the latest 100,000
        images; NaN before the first.
      p99_ms: 99th percentile of the same.
      mean_batch_size: mean images per program.
      waiting: images that were submitted and are not classified yet.
    """

    completed: int
    late: int
    p50_ms: float
    p99_ms: float
    mean_batch_size: float
    waiting: int = 0


class LatencyRecorder:
    """Counts completed images and keeps the latest latencies.

    Attributes:
      completed: images recorded.
      late: images recorded as late.
    """

    def __init__(self) -> None:
        self.completed = self.late = 0
        self._latency_ms = np.full(_WINDOW, np.nan)

    def record(self, latency_ms: Float64[np.ndarray, " n"], late: Bool[np.ndarray, " n"]) -> None:
        """Adds n images."""
        indices = (self.completed + np.arange(len(latency_ms))) % _WINDOW
        self._latency_ms[indices] = latency_ms
        self.completed += len(latency_ms)
        self.late += int(late.sum())

    def percentiles(self, *percents: float) -> list[float]:
        """Percentiles of the latest latencies; NaN before the first image."""
        known = self._latency_ms[: min(self.completed, _WINDOW)]
        if not len(known):
            return [float("nan")] * len(percents)
        return [float(value) for value in np.percentile(known, percents)]
