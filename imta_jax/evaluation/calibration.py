"""Can a confidence be trusted? Expected calibration error and the bins of a reliability diagram.

Early exit acts on confidences, so it matters whether images given confidence c are right with
probability c (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2).
Nothing here changes a confidence; drawing the diagram is left to the report.
"""

from typing import NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """Bins of a reliability diagram, of equal width over [0, 1].

    Attributes:
      edges: float64 [bins + 1]; bin j holds confidences in (edges[j], edges[j + 1]], bin 0 also 0.
      count: int64 [bins], images in the bin.
      confidence: float64 [bins], mean confidence in the bin, 0..1; NaN where it is empty.
      accuracy: float64 [bins], share of right predictions in the bin, 0..1; NaN where it is empty.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Reliability:
    """Sorts images into equal-width bins of confidence and averages each bin (Guo et al., Eq. 3).

    Args:
      confidence: [N], 0..1, highest softmax probability.
      correct: booleans [N].
      bins: number of bins, from 1.

    Returns:
      Edges, counts, mean confidence and accuracy per bin.

    Raises:
      ValueError: no images, shapes that disagree, a confidence outside 0..1, fewer bins than one.
    """
    confidence, correct = _checked(confidence, correct, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_of = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(bin_of, minlength=bins)

    def mean_in_bin(values: np.ndarray) -> np.ndarray:
        total = np.bincount(bin_of, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(edges, count, mean_in_bin(confidence), mean_in_bin(correct))


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over the bins (Guo et al., Eq. 5).

    Each bin counts as much as it has images: sum_j count_j / N * |accuracy_j - confidence_j|.

    Args:
      confidence: [N], 0..1, highest softmax probability at one exit.
      correct: booleans [N].
      bins: number of equal-width bins, 15 in the literature.

    Returns:
      Percent, 0 (calibrated) to 100 (always sure, always wrong).

    Raises:
      ValueError: as `reliability`.
    """
    _, count, mean_confidence, accuracy = reliability(confidence, correct, bins)
    used = count > 0
    gaps = np.abs(accuracy[used] - mean_confidence[used])
    return float(100.0 * np.average(gaps, weights=count[used]))


def calibration_errors(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> np.ndarray:
    """The expected calibration error of every exit.

    Args:
      confidence: [E, N], 0..1.
      correct: booleans [E, N].
      bins: number of equal-width bins.

    Returns:
      float64 [E], percent.

    Raises:
      ValueError: as `reliability`, or arrays that are not [exits, images].
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    if confidence.ndim != 2 or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence {confidence.shape} and correct {correct.shape}; "
            "expected [exits, images] twice"
        )
    pairs = zip(confidence, correct, strict=True)
    return np.array([expected_calibration_error(*pair, bins) for pair in pairs])


def _checked(
    confidence: np.ndarray, correct: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or confidence.size == 0:
        raise ValueError(
            f"confidence {confidence.shape} and correct {correct.shape}; expected [images] twice, "
            "of one exit and at least one image"
        )
    if bins < 1:
        raise ValueError(f"{bins} bins asked for; expected at least 1, usually 15")
    # Float32 sums of a softmax can exceed 1 by rounding; that much is taken as 1.
    outside = np.flatnonzero(~((confidence >= 0) & (confidence <= 1 + 1e-6)))
    if outside.size:
        raise ValueError(
            f"confidence {confidence[outside[0]]} of image {outside[0]} is outside 0..1; "
            "expected a probability, not a logit"
        )
    return confidence, correct
