"""Expected calibration error, the bins of a reliability diagram, and failure prediction.

Early exits act on confidences, so it matters whether images of confidence c are correct with
probability c (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2). This
module measures calibration. It does not change confidences, and the report draws the diagram.

A threshold only uses the order of the images by confidence, which calibration does not measure. The
area under the ROC curve of "this exit is correct" does, and predicts the quality of early exits
better ("Rethinking Calibration for Early-Exit Neural Networks", arXiv 2508.21495).
"""

from typing import NamedTuple

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float64, Int


class Reliability(NamedTuple):
    """Bins of a reliability diagram, of equal width over [0, 1].

    Attributes:
      edges: bin j holds confidences in (edges[j], edges[j + 1]]; bin 0 also holds 0.
      count: number of images in each bin.
      confidence: mean confidence in each bin, 0..1; NaN in an empty bin.
      accuracy: fraction of correct predictions in each bin, 0..1; NaN in an empty bin.
    """

    edges: Float64[np.ndarray, " bins+1"]
    count: Int[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """Averages confidence and accuracy in equal-width bins of confidence (Guo et al., Eq. 3).

    Args:
      confidence: [N] highest softmax probabilities of one exit, 0..1.
      correct: [N] whether each prediction is correct.
      bins: number of bins, at least 1.

    Returns:
      Edges, counts, mean confidence and accuracy per bin.

    Raises:
      ValueError: no images, shapes that disagree, a confidence outside 0..1, or `bins` below 1.
    """
    confidence, correct = _checked(confidence, correct, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_of = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(bin_of, minlength=bins)

    def mean_in_bin(values: np.ndarray) -> Float64[np.ndarray, " bins"]:
        total = np.bincount(bin_of, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(edges, count, mean_in_bin(confidence), mean_in_bin(correct))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over the bins (Guo et al., Eq. 5).

    Bins are weighted by their number of images:
    sum_j count_j / N * |accuracy_j - confidence_j|.

    Args:
      confidence: [N] highest softmax probabilities of one exit, 0..1.
      correct: [N] whether each prediction is correct.
      bins: number of equal-width bins; 15 in the literature.

    Returns:
      The error in percent, from 0 (calibrated) to 100 (always certain, always wrong).

    Raises:
      ValueError: see `reliability`.
    """
    _, count, mean_confidence, accuracy = reliability(confidence, correct, bins)
    filled = count > 0
    gaps = np.abs(accuracy[filled] - mean_confidence[filled])
    return float(100.0 * np.average(gaps, weights=count[filled]))


def calibration_errors(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15
) -> Float64[np.ndarray, " E"]:
    """Expected calibration error of every exit.

    Args:
      confidence: [E, N] highest softmax probabilities, 0..1.
      correct: [E, N] whether each prediction is correct.
      bins: number of equal-width bins.

    Returns:
      The error per exit, percent.

    Raises:
      ValueError: see `reliability`, or arrays that are not [exits, images].
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    _check_exits(confidence, correct)
    pairs = zip(confidence, correct, strict=True)
    return np.array([expected_calibration_error(*pair, bins) for pair in pairs])


def failure_prediction_auroc(
    confidence: ArrayLike, correct: ArrayLike
) -> Float64[np.ndarray, " E"]:
    """Area under the ROC curve of confidence as a predictor of correctness, for every exit.

    It is the probability that a correct prediction has a higher confidence than a wrong one, where
    equal confidences count half (the Mann-Whitney statistic): with the mean ranks r of n images of
    which n1 are correct, (sum of r over the correct ones - n1 (n1 + 1) / 2) / (n1 (n - n1)).

    Args:
      confidence: [E, N] highest softmax probabilities, or any other score.
      correct: [E, N] whether each prediction is correct.

    Returns:
      The area per exit, 0..1; 0.5 if confidence says nothing. NaN if all predictions of an exit are
      correct or all are wrong.

    Raises:
      ValueError: arrays that are not [exits, images].
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct, bool)
    _check_exits(confidence, correct)
    positive = correct.sum(axis=1)
    pairs = positive * (correct.shape[1] - positive)
    ranks = np.stack([_mean_ranks(scores) for scores in confidence])
    above = np.where(correct, ranks, 0.0).sum(axis=1) - positive * (positive + 1) / 2
    return np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _mean_ranks(scores: np.ndarray) -> Float64[np.ndarray, " N"]:
    """Ranks from 1, averaged over equal scores.

    `scipy.stats.rankdata(scores)`, without the import of `scipy.stats`, which takes 0.5 s.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _check_exits(confidence: np.ndarray, correct: np.ndarray) -> None:
    if confidence.ndim != 2 or confidence.shape != correct.shape:
        raise InputError(
            f"confidence {confidence.shape} and correct {correct.shape}; "
            "expected [exits, images] for both"
        )


def _checked(
    confidence: ArrayLike, correct: ArrayLike, bins: int
) -> tuple[Float64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or confidence.size == 0:
        raise InputError(
            f"confidence {confidence.shape} and correct {correct.shape}; expected [images] for "
            "both, of one exit and at least one image"
        )
    if bins < 1:
        raise InputError(f"bins={bins}; expected at least 1, usually 15")
    # The float32 sum of a softmax can exceed 1 by rounding.
    outside = np.flatnonzero(~((confidence >= 0) & (confidence <= 1 + 1e-6)))
    if outside.size:
        raise InputError(
            f"confidence {confidence[outside[0]]} of image {outside[0]} is outside 0..1; "
            "expected a probability, not a logit"
        )
    return confidence, correct
