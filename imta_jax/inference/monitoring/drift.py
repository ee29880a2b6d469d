"""Drift: the exit fractions of incoming images, compared with those of validation.

Images are counted in consecutive windows. At each exit, an image that reaches it leaves or
continues. A window and the validation images give a 2 x 2 table of these counts, tested by the
G-test of homogeneity (Sokal and Rohlf, "Biometry", 3rd ed., section 17.4):

    G = 2 * sum of observed * log(observed / expected)

The sum over the exits is the G of the whole table of exits, with one degree of freedom per exit but
the last. Tests per exit can also use images that left because of a deadline: such an image
continued at every exit that it reached, as in a life table of censored times.
"""

import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy.special import chdtrc

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike

# An exit with a smaller expected count is left out: the chi-squared distribution of G is a limit.
_MIN_EXPECTED = 5
# Count that stands for exact fractions; the counts of any window are negligible against it.
_EXACT = 10**12


class DriftStatus(NamedTuple):
    """State of a `DriftMonitor`.

    Attributes:
      num_images: images observed.
      num_windows: complete windows.
      num_alarms: windows with an alarm.
      alarm: whether the latest window had an alarm.
      p_value: p-value of the latest window; NaN before the first.
      exit_fractions: fractions in the latest window, corrected for images with a deadline;
        NaN before the first.
      validation_exit_fractions: fractions that they are compared with.
    """

    num_images: int
    num_windows: int
    num_alarms: int
    alarm: bool
    p_value: float
    exit_fractions: Float64[np.ndarray, " E"]
    validation_exit_fractions: Float64[np.ndarray, " E"]


class DriftMonitor:
    """Compares the exits of images with validation, window by window. Thread-safe.

    With images of the validation distribution, each window has a false alarm with probability
    `false_alarm_rate`: with the defaults, one per million images on average. The windows share the
    validation images, so that false alarms are not independent.

    Args:
      exit_fractions: [E], fraction of the validation images that leave at each exit under the
        thresholds that are used.
      num_validation: number of validation images; None if the fractions are exact. With their
        number, the test allows for the error of the fractions.
      window: images per test. A larger window detects smaller shifts, later.
      false_alarm_rate: probability of an alarm per window without drift.

    Raises:
      ValueError: fractions that do not sum to 1, or a value out of range.
    """

    def __init__(
        self,
        exit_fractions: ArrayLike,
        *,
        num_validation: int | None = None,
        window: int = 1000,
        false_alarm_rate: float = 1e-3,
    ):
        fractions = np.asarray(exit_fractions, np.float64)
        if fractions.ndim != 1 or not (fractions >= 0).all() or abs(fractions.sum() - 1) > 1e-3:
            raise InputError(
                f"exit_fractions is {fractions.tolist()}; expected one fraction per exit, with a "
                "sum of 1: use validation_exit_fractions of the operating point"
            )
        for name, value in (("window", window), ("num_validation", num_validation)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; found {value}")
        if not 0 < false_alarm_rate < 1:
            raise InputError(f"false_alarm_rate must be between 0 and 1; found {false_alarm_rate}")
        self.window, self.false_alarm_rate = window, false_alarm_rate
        self._fractions = fractions / fractions.sum()
        count = _EXACT if num_validation is None else num_validation
        self._validation = _left_and_continued(self._fractions * count)
        self._lock = threading.Lock()
        self._exits = np.zeros(0, np.int64)
        self._truncated = np.zeros(0, bool)
        self._num_images = self._num_windows = self._num_alarms = 0
        self._p_value = float("nan")
        self._latest = np.full(len(fractions), np.nan)

    def observe(
        self, exits: Int[np.ndarray, " n"], truncated: Bool[np.ndarray, " n"] | None = None
    ) -> None:
        """Adds images, in the order of their arrival.

        Args:
          exits: exit of each image, from 0.
          truncated: whether the image left because of a deadline instead of the exit rule.

        Raises:
          ValueError: an exit that the network does not have.
        """
        exits = np.asarray(exits, np.int64)
        outside = (exits < 0) | (exits >= len(self._fractions))
        if outside.any():
            raise InputError(
                f"exits has the value {exits[outside][0]}; expected 0 to {len(self._fractions) - 1}"
            )
        new = np.zeros(len(exits), bool) if truncated is None else np.asarray(truncated, bool)
        with self._lock:
            self._num_images += len(exits)
            self._exits = np.concatenate([self._exits, exits])
            self._truncated = np.concatenate([self._truncated, new])
            while len(self._exits) >= self.window:
                self._test(self._exits[: self.window], self._truncated[: self.window])
                self._exits = self._exits[self.window :]
                self._truncated = self._truncated[self.window :]

    def status(self) -> DriftStatus:
        """Returns the state after the images so far."""
        with self._lock:
            return DriftStatus(
                self._num_images,
                self._num_windows,
                self._num_alarms,
                self._p_value < self.false_alarm_rate,
                self._p_value,
                self._latest.copy(),
                self._fractions.copy(),
            )

    def _test(self, exits: Int64[np.ndarray, " n"], truncated: Bool[np.ndarray, " n"]) -> None:
        """Tests one window."""
        num_exits = len(self._fractions)
        leaving = np.bincount(exits[~truncated], minlength=num_exits)
        censored = np.bincount(exits[truncated], minlength=num_exits)
        counts = _left_and_continued(leaving, censored)
        self._num_windows += 1
        self._p_value = homogeneity_p_value(counts, self._validation)
        self._latest = _fractions_of(counts)
        self._num_alarms += self._p_value < self.false_alarm_rate


def homogeneity_p_value(first: Float[np.ndarray, "M 2"], second: Float[np.ndarray, "M 2"]) -> float:
    """P-value of the summed G-tests of M tables of 2 x 2.

    Args:
      first: per exit, the images of one sample that left and that continued.
      second: the same of the other sample.

    Returns:
      The p-value. Tables with an expected count below 5 are left out; 1 if all are.
    """
    observed = np.stack([first, second], axis=1)  # [M, sample, left or continued]
    total = observed.sum(axis=(1, 2), keepdims=True)
    sums = observed.sum(axis=2, keepdims=True) * observed.sum(axis=1, keepdims=True)
    expected = sums / np.maximum(total, 1)
    used = expected.min(axis=(1, 2)) >= _MIN_EXPECTED
    if not used.any():
        return 1.0
    observed, expected = observed[used], expected[used]
    # A count of 0 contributes 0 * log 0 = 0.
    logarithm = np.log(np.where(observed > 0, observed / expected, 1.0))
    return float(chdtrc(used.sum(), max(2 * (observed * logarithm).sum(), 0.0)))


def _left_and_continued(
    leaving: Float[np.ndarray, " E"] | Int[np.ndarray, " E"],
    censored: Int[np.ndarray, " E"] | None = None,
) -> Float64[np.ndarray, "M 2"]:
    """Images that left at each exit but the last, and that continued there."""
    known = np.asarray(leaving, np.float64)
    later = np.cumsum(known[::-1])[::-1] - known
    if censored is not None:  # a censored image continued at its own exit too
        later += np.cumsum(censored[::-1])[::-1]
    return np.stack([known, later], axis=1)[:-1]


def _fractions_of(counts: Float64[np.ndarray, "M 2"]) -> Float64[np.ndarray, " E"]:
    """Exit fractions by the product-limit estimate; 0 after an exit that no image reached."""
    with np.errstate(invalid="ignore"):
        left = np.append(counts[:, 0] / counts.sum(axis=1), 1.0)
    reached = np.concatenate([[1.0], np.cumprod(1 - left[:-1])])
    return np.where(reached > 0, reached * left, 0.0)
