"""Learned gates on saved logits (JEI-DNN, Regol et al., ICLR 2024, arXiv 2310.09163).

Exit e has a gate that decides from four numbers u_e whether an image leaves:

    g_e = sigmoid(a_e . u_e + b_e),    u_e = (highest probability, entropy, margin, powered entropy)

The margin is the difference between the two highest probabilities, and the powered entropy that of
the normalized squared probabilities. With the cost c_e of each exit, the best exit of an image is
e* = argmin_e (cross-entropy_e + price * c_e / c_E). Gate e is fitted to the target 1[e >= e*]; both
values have the same total weight over all gates. An image leaves at the first gate with g_e >= 1/2,
or at the last exit. A higher price gives cheaper gates.

The paper trains gates and classifiers in turn; here the trained network does not change.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from imta_jax.evaluation.array_shapes import Bool, Float32, Float64, Int, Num

# Coefficient of a small penalty on the gates' parameters, which separable targets need.
_RIDGE = 1e-3
_NEWTON_STEPS = 12
# Prices in nats per cost of the full network.
PRICES = tuple(np.geomspace(1e-3, 1e2, 31).tolist())


class GateInputs(NamedTuple):
    """Inputs of the gates on one split, and the losses that define their targets.

    Attributes:
      uncertainty: the four numbers of each exit but the last.
      losses: cross-entropy of each exit, in nats.
    """

    uncertainty: Float64[np.ndarray, "G N 4"]
    losses: Float64[np.ndarray, "E N"]


class Gates(NamedTuple):
    """Gates of all exits but the last.

    Attributes:
      weights: a of each gate, for standardized inputs.
      biases: b of each gate.
      mean: mean of each input.
      deviation: standard deviation of each input.
    """

    weights: Float64[np.ndarray, "G 4"]
    biases: Float64[np.ndarray, " G"]
    mean: Float64[np.ndarray, "G 1 4"]
    deviation: Float64[np.ndarray, "G 1 4"]

    def exits(self, uncertainty: Float64[np.ndarray, "G N 4"]) -> Int[np.ndarray, " N"]:
        """Exit of each image, from 0."""
        scores = np.einsum("gni,gi->gn", (uncertainty - self.mean) / self.deviation, self.weights)
        leaves = scores + self.biases[:, None] >= 0  # sigmoid >= 1/2
        last = np.ones((1, leaves.shape[1]), bool)
        return np.concatenate([leaves, last]).argmax(axis=0)


def gate_inputs(logits: Float32[np.ndarray, "E N K"], labels: Int[np.ndarray, " N"]) -> GateInputs:
    """The gates' inputs, and the cross-entropies that define their targets."""
    log_p = log_softmax(logits, axis=-1)
    losses = -log_p[:, np.arange(len(labels)), labels]
    by_gate = [_uncertainty(log_p_of_exit) for log_p_of_exit in log_p[:-1]]
    uncertainty = np.array(by_gate, np.float64).reshape(-1, len(labels), 4)
    return GateInputs(uncertainty, losses.astype(np.float64))


def best_exits(
    losses: Float64[np.ndarray, "E N"], costs: Num[np.ndarray, " E"], price: float
) -> Int[np.ndarray, " N"]:
    """e*: the exit with the least sum of cross-entropy and price times cost, from 0.

    Args:
      losses: cross-entropy of each exit in nats.
      costs: cumulative cost of each exit.
      price: price of the full network's cost, in nats.
    """
    return (losses + price * (costs / costs[-1])[:, None]).argmin(axis=0)


def fit_gates(inputs: GateInputs, costs: Num[np.ndarray, " E"], price: float) -> Gates:
    """Gates for one price.

    Args:
      inputs: inputs on the images that the gates are fitted on.
      costs: cumulative cost of each exit.
      price: price of the full network's cost, in nats.
    """
    best = best_exits(inputs.losses, costs, price)
    target = np.arange(len(costs) - 1)[:, None] >= best[None]
    mean = inputs.uncertainty.mean(axis=1, keepdims=True)
    deviation = inputs.uncertainty.std(axis=1, keepdims=True) + 1e-6
    standardized = (inputs.uncertainty - mean) / deviation
    num_exiting = max(1, target.sum())
    weight = np.where(target, (target.size - target.sum()) / num_exiting, 1.0)
    fitted = [_logistic(*gate) for gate in zip(standardized, target, weight, strict=True)]
    parameters = np.array(fitted).reshape(-1, 5)
    return Gates(parameters[:, :4], parameters[:, 4], mean, deviation)


def gate_multiply_adds(num_exits: int, num_classes: int) -> Int[np.ndarray, " E"]:
    """Multiply-adds of the gates per image that leaves at each exit.

    A gate needs K for the entropy, 3 K for the powered entropy (squares, normalization, entropy),
    and 4 for its linear function. The last exit has no gate.
    """
    gates = np.minimum(np.arange(1, num_exits + 1), num_exits - 1)
    return gates * (4 * num_classes + 4)


def _uncertainty(log_p: Float32[np.ndarray, "N K"]) -> Float32[np.ndarray, "N 4"]:
    p = np.exp(log_p)
    second, first = np.partition(p, -2, axis=-1)[:, -2:].T
    squared = p * p
    norm = squared.sum(axis=-1)
    columns = (
        first,
        -np.einsum("nk,nk->n", p, log_p),
        first - second,
        # Entropy of r = p^2 / norm: -sum r log r = log norm - 2 sum r log p.
        np.log(norm) - 2 * np.einsum("nk,nk->n", squared, log_p) / norm,
    )
    return np.stack(columns, axis=-1)


def _logistic(
    x: Float64[np.ndarray, "N 4"], target: Bool[np.ndarray, " N"], weight: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " 5"]:
    """Weighted logistic regression by Newton's method; the last entry is the bias."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    parameters, total = np.zeros(5), max(weight.sum(), 1e-12)
    for _ in range(_NEWTON_STEPS):
        # Scores beyond the limits of exp change nothing.
        p = 1 / (1 + np.exp(-np.clip(x @ parameters, -30, 30)))
        slope = x.T @ (weight * (p - target)) / total + _RIDGE * parameters
        curvature = (x.T * (weight * p * (1 - p))) @ x / total + _RIDGE * np.eye(5)
        parameters -= np.linalg.solve(curvature, slope)
    return parameters
