"""Admission of requests: how many may be in flight, and whether a deadline can be met."""

import contextlib
from collections.abc import Iterator

import numpy as np

from imta_jax.inference import StageProfile

_WEIGHT = 0.1  # Weight of the latest request in the moving average.


class Admission:
    """Sheds requests that would wait too long. Used from the event loop only.

    The expected latency of a request is that of a single image plus the time of the images before
    it, from the stage profile, multiplied by a moving average of measured over expected latency.

    Args:
      max_in_flight: requests between admission and response.
    """

    def __init__(self, max_in_flight: int):
        self.max_in_flight, self.in_flight = max_in_flight, 0
        self._single_ms = self._image_ms = 0.0
        self._slowdown = 1.0

    def set_profile(self, profile: StageProfile, exit_fractions: np.ndarray) -> None:
        """Sets the times per image."""
        self._single_ms = float(profile.stage_ms[:, 0].sum())
        self._image_ms = float(profile.exit_ms() @ exit_fractions)

    def expected_ms(self) -> float:
        """Expected milliseconds from now to the response to a new request."""
        return self._slowdown * (self._single_ms + self.in_flight * self._image_ms)

    def reason_to_shed(self, deadline_ms: float | None) -> str | None:
        """The name of the reason to shed a request; None to accept it.

        A request is accepted while none is in flight, so that the average is always updated.
        """
        if self.in_flight >= self.max_in_flight:
            return "queue_full"
        if deadline_ms is not None and self.in_flight and self.expected_ms() > deadline_ms:
            return "deadline"
        return None

    @contextlib.contextmanager
    def request(self) -> Iterator[float]:
        """Counts a request as in flight; yields its expected latency without the slowdown."""
        expected_ms = self._single_ms + self.in_flight * self._image_ms
        self.in_flight += 1
        try:
            yield expected_ms
        finally:
            self.in_flight -= 1

    def record(self, expected_ms: float, stage_ms: float) -> None:
        """Adds a completed request to the average."""
        ratio = stage_ms / max(expected_ms, 1e-3)
        self._slowdown += _WEIGHT * (ratio - self._slowdown)
