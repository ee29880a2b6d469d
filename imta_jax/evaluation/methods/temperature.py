"""One temperature per exit, so that the confidences of different exits mean the same.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: softmax(z / T) with
the T that minimises the negative log-likelihood of validation images. The class of the highest
logit stays the same at every T > 0; how images rank by confidence, and so who leaves, may change a
little, as T weighs the other classes. Thresholds are then chosen on scaled confidences.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imta_jax.evaluation.predictions import (
    Predictions,
    by_rows,
    checked_predictions,
    highest_probability,
)
from imta_jax.runtime.environment import usable_cores

COLDEST, HOTTEST = 0.01, 100.0
# Relative size of a Newton step after which no other is made: the error left is about its square.
_LAST_STEP = 1e-4
_MOST_STEPS = 60
# The images that most steps look at; only the last ones look at all.
_FIRST_LOOK = 1000
_CHUNK_VALUES = 2**18


def temperatures(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The temperature of each exit that minimises its negative log-likelihood.

    In b = 1 / T the likelihood is convex: its slope is mean(E_b[z] - z_label), its curvature
    mean(Var_b[z]), with E_b and Var_b under softmax(b z). Newton's method, kept inside a bracket.

    Args:
      logits: [E, N, K], of validation images.
      labels: integers [N] in 0..K-1.

    Returns:
      float64 [E], within 0.01 to 100: an exit that is never wrong has no best temperature and gets
      one near the least, one that is worse than a guess one near the largest.

    Raises:
      ValueError: as `checked_predictions`.
    """
    logits, labels = checked_predictions((logits, labels), "predictions to calibrate")
    every = max(1, len(labels) // _FIRST_LOOK)
    start = _minimised(Predictions(logits[:, ::every], labels[::every]), np.ones(len(logits)))
    return 1.0 / _minimised(Predictions(logits, labels), start)


def scaled_confidence(logits: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """The highest probability of softmax(z / T): [E, N, K] and [E] -> float32 [E, N], in (0, 1].

    Raises:
      ValueError: other than one positive temperature per exit.
    """
    pairs = zip(logits, _checked_temperature(temperature, len(logits)), strict=True)
    return np.stack(
        [by_rows(lambda rows, t=t: highest_probability(rows / t), z, np.float32) for z, t in pairs]
    )


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, temperature: np.ndarray
) -> np.ndarray:
    """Mean of -log softmax(z / T)_label over the images, in nats.

    Args:
      logits: [E, N, K].
      labels: integers [N] in 0..K-1.
      temperature: [E], positive.

    Returns:
      float64 [E].

    Raises:
      ValueError: as `checked_predictions`, or other than one positive temperature per exit.
    """
    logits, labels = checked_predictions((logits, labels), "predictions to judge")
    found = []
    for z, t in zip(logits, _checked_temperature(temperature, len(logits)), strict=True):
        surest = np.log(by_rows(lambda rows, t=t: highest_probability(rows / t), z, np.float32))
        behind = (z.max(axis=1) - z[np.arange(len(labels)), labels]) / t
        found.append(np.mean(behind - surest, dtype=np.float64))
    return np.array(found)


def _minimised(predictions: Predictions, inverse: np.ndarray) -> np.ndarray:
    """Inverse temperatures [E] at which the slope vanishes, from a first guess [E]."""
    low, high = np.full(len(inverse), 1 / HOTTEST), np.full(len(inverse), 1 / COLDEST)
    for _ in range(_MOST_STEPS):
        slope, curvature = _derivatives(predictions, inverse)
        low, high = np.where(slope < 0, inverse, low), np.where(slope > 0, inverse, high)
        # Where all logits of an image are alike, the likelihood is flat.
        newton = inverse - slope / np.maximum(curvature, 1e-30)
        inside = (newton >= low) & (newton <= high)
        following = np.where(inside, newton, np.sqrt(low * high))
        steps = np.abs(following - inverse) / inverse
        inverse = following
        if steps.max() <= _LAST_STEP:
            break
    return inverse


def _derivatives(predictions: Predictions, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative [E] of the mean negative log-likelihood in 1 / T."""
    logits, labels = predictions
    num_exits, num_images, num_classes = logits.shape
    size = max(1, _CHUNK_VALUES // num_classes)

    def work(job: tuple[int, int]) -> np.ndarray:
        exit_index, start = job
        rows = logits[exit_index, start : start + size]
        return _sums(rows, labels[start : start + size], np.float32(inverse[exit_index]))

    jobs = [(e, start) for e in range(num_exits) for start in range(0, num_images, size)]
    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy releases the interpreter's lock
        sums = np.array(list(pool.map(work, jobs)))
    slope, curvature = sums.reshape(num_exits, -1, 2).sum(axis=1).T / num_images
    return slope, curvature


def _sums(rows: np.ndarray, labels: np.ndarray, inverse: np.float32) -> np.ndarray:
    """Sums over rows [n, K] of E_b[z] - z_label and Var_b[z]: [2]."""
    # Nothing depends on what is added to all logits of a row; with maximum 0 no exponential
    # overflows.
    centred = rows - rows.max(axis=1, keepdims=True)
    weights = np.exp(centred * inverse)
    total = weights.sum(axis=1)
    weights *= centred
    mean = weights.sum(axis=1) / total
    square = np.einsum("nk,nk->n", weights, centred) / total
    of_label = centred[np.arange(len(labels)), labels]
    parts = (mean - of_label, square - mean**2)
    return np.array([part.sum(dtype=np.float64) for part in parts])


def _checked_temperature(temperature: np.ndarray, num_exits: int) -> np.ndarray:
    temperature = np.asarray(temperature, np.float64)
    if temperature.shape != (num_exits,) or not (
        np.isfinite(temperature).all() and (temperature > 0).all()
    ):
        raise ValueError(
            f"temperatures {temperature} with logits of {num_exits} exits; expected one positive "
            "number per exit, as `temperatures` gives them"
        )
    return temperature.astype(np.float32)
