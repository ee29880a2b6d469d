"""Observer of a stream: drift of its exits, and an audit."""

import numpy as np
from jaxtyping import Bool, Shaped

from imta_jax.inference.monitoring.audit import Audit
from imta_jax.inference.monitoring.drift import DriftMonitor
from imta_jax.inference.stream.request import StreamPredictions


class StreamMonitor:
    """Passes the images of an `AdaptiveStream` to monitors: `AdaptiveStream(..., observer=self)`.

    Args:
      drift: monitor of the exit fractions.
      audit: audit by the last exit, or None.
    """

    def __init__(self, drift: DriftMonitor, audit: Audit | None = None):
        self.drift, self.audit = drift, audit

    def __call__(
        self,
        images: Shaped[np.ndarray, "n H W C"],
        predictions: StreamPredictions,
        truncated: Bool[np.ndarray, " n"],
    ) -> None:
        """Observes one request; see `AdaptiveStream`."""
        self.drift.observe(predictions.exit, truncated)
        if self.audit is not None:
            self.audit.observe(images, predictions.labels, truncated)
