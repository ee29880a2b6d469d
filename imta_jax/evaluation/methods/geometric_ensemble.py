"""Geometric ensemble of exits on saved logits (ZTW, Wolczyk et al., NeurIPS 2021, Sec. 3.2).

At exit m, with the softmax probabilities p_j of exits 1 to m, the ensemble predicts

    q_m = softmax(sum_{j <= m} v_mj log p_j + b_m),    v_mj >= 0

The paper writes the weights as v = exp(w) / m and fits w and b by gradient descent from random
values, on training images. In v and b the negative log-likelihood is convex, so it is minimized
there. Validation images are few, so the biases get a normal prior of mean 0 and deviation 0.1.

Fit on other images than those that choose thresholds: fitted probabilities are overconfident.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from imta_jax.evaluation.array_shapes import Float32, Float64, Int
from imta_jax.runtime.environment import usable_cores

# Log-probabilities per exit that a fit uses at most: all of 5,000 images with 1,000 classes.
_MAX_VALUES = 5_000_000
_PRIOR_DEVIATION = 0.1
_MAX_STEPS = 100
# A fit stops after a step of less than this relative improvement.
_TOLERANCE = 1e-7


class GeometricEnsemble(NamedTuple):
    """A fitted ensemble.

    Attributes:
      weights: v; entry (m, j) is the weight of exit j at exit m, 0 for j > m.
      biases: b of each exit and class.
    """

    weights: Float64[np.ndarray, "E E"]
    biases: Float64[np.ndarray, "E K"]

    def logits(self, logits: Float32[np.ndarray, "E N K"]) -> Float32[np.ndarray, "E N K"]:
        """Logits of the ensemble at every exit, from those of the exits."""
        log_p = log_softmax(logits, axis=-1)
        weights, biases = (x.astype(np.float32) for x in self)
        return np.einsum("mj,jnk->mnk", weights, log_p) + biases[:, None]

    def multiply_adds(self) -> Int[np.ndarray, " E"]:
        """Multiply-adds per image that leaves at each exit: m K at every exit m up to there."""
        num_exits, num_classes = self.biases.shape
        return num_classes * np.cumsum(np.arange(1, num_exits + 1))


def fit_geometric_ensemble(
    logits: Float32[np.ndarray, "E N K"], labels: Int[np.ndarray, " N"]
) -> GeometricEnsemble:
    """The ensemble that maximizes the posterior probability of the labels.

    Args:
      logits: logits of all exits.
      labels: classes, from 0.
    """
    num_exits, num_images, num_classes = logits.shape
    stride = -(-num_images * num_classes // _MAX_VALUES)
    log_p, labels = log_softmax(logits[:, ::stride], axis=-1), labels[::stride]
    prefixes = [log_p[: m + 1] for m in range(num_exits)]
    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy releases the GIL.
        fits = list(pool.map(lambda prefix: _fit_exit(prefix, labels), prefixes))
    weights = np.zeros((num_exits, num_exits))
    for m, (of_exit, _) in enumerate(fits):
        weights[m, : m + 1] = of_exit
    return GeometricEnsemble(weights, np.stack([biases for _, biases in fits]))


def _fit_exit(
    log_p: Float32[np.ndarray, "m N K"], labels: Int[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " K"]]:
    """Weights and biases of one exit, from the mean of the log-probabilities."""
    used, _, num_classes = log_p.shape
    start = np.concatenate([np.full(used, 1 / used), np.zeros(num_classes)])
    bounds = [(0.0, None)] * used + [(None, None)] * num_classes
    solution = minimize(
        negative_log_posterior,
        start,
        args=(log_p, labels),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _MAX_STEPS, "ftol": _TOLERANCE},
    )
    return solution.x[:used], solution.x[used:]


def negative_log_posterior(
    parameters: Float64[np.ndarray, " P"],
    log_p: Float32[np.ndarray, "m N K"],
    labels: Int[np.ndarray, " N"],
) -> tuple[float, Float64[np.ndarray, " P"]]:
    """Mean negative log-posterior per image at one exit, in nats, and its gradient.

    Args:
      parameters: the weights v, then the biases b.
      log_p: log-probabilities of the exits up to this one.
      labels: classes, from 0.
    """
    used, num_images, _ = log_p.shape
    precision = _PRIOR_DEVIATION**-2
    weights, biases = parameters[:used], parameters[used:]
    # einsum, because a multi-threaded BLAS is slower for matrices this small.
    log_q = np.einsum("j,jnk->nk", weights.astype(np.float32), log_p)
    log_q += biases.astype(np.float32)
    of_label = log_q[np.arange(num_images), labels]
    highest = log_q.max(axis=1)
    q = np.exp(log_q - highest[:, None])
    total = q.sum(axis=1)
    nats = (np.log(total) + highest - of_label).mean(dtype=np.float64)
    error = q
    error /= total[:, None]
    error[np.arange(num_images), labels] -= 1
    to_weights = np.einsum("jnk,nk->j", log_p, error) / num_images
    to_biases = (error.sum(axis=0, dtype=np.float64) + precision * biases) / num_images
    value = nats + precision * (biases**2).sum() / (2 * num_images)
    return float(value), np.concatenate([to_weights, to_biases]).astype(np.float64)
