"""The exit rule `learned_gate`: logistic gates that are fitted on validation images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

from imta_jax.errors import InputError
from imta_jax.evaluation.methods.learned_gate import fit_gates, gate_inputs
from imta_jax.techniques.exit_rules import fitted_by


def _fit(
    logits: Float32[np.ndarray, "E N K"],
    labels: Int[np.ndarray, " N"],
    costs: Num[np.ndarray, " E"],
    *,
    price: float = 1.0,
    gates: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The options with gates of a price; given gates are kept."""
    if gates is not None:
        return {"price": price, "gates": gates}
    fitted = fit_gates(gate_inputs(logits, labels), costs, price)
    # a . (u - mean) / deviation + b, as a linear function of u.
    weights = fitted.weights / fitted.deviation[:, 0]
    biases = fitted.biases - (weights * fitted.mean[:, 0]).sum(axis=1)
    linear = np.concatenate([weights, biases[:, None]], axis=1)
    return {"price": price, "gates": linear.tolist()}


@fitted_by(_fit)
def learned_gate(
    logits: Float[Array, "N K"],
    carry: Int[Array, " N"] | None,
    *,
    price: float = 1.0,
    gates: Sequence[Sequence[float]] | None = None,
) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
    """The log odds a_e . u_e + b_e of the gate of exit e; 0 at the last exit, which has no gate.

    Args:
      logits: logits of one exit.
      carry: number of the exit, from 0; None at the first exit.
      price: price of the full network's cost in nats, with which the gates are fitted.
      gates: per exit but the last, the four weights and the bias.

    Raises:
      InputError: no gates; evaluation fits them.
    """
    if gates is None:
        raise InputError(
            "exit rule 'learned_gate' has no option gates; expected those that --mode=evaluate "
            "fits and records in results.json"
        )
    exit_index = jnp.zeros(logits.shape[:1], jnp.int32) if carry is None else carry
    linear = jnp.asarray([*gates, [0.0] * 5], jnp.float32)[exit_index]
    score = (linear[:, :4] * _uncertainty(logits)).sum(axis=-1) + linear[:, 4]
    return score, exit_index + 1


def _uncertainty(logits: Float[Array, "N K"]) -> Float[Array, "N 4"]:
    """Highest probability, entropy, margin and powered entropy, as in `gate_inputs`."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    first, second = jnp.moveaxis(jax.lax.top_k(p, 2)[0], -1, 0)
    squared = p * p
    norm = squared.sum(axis=-1)
    entropy = -(p * log_p).sum(axis=-1)
    powered = jnp.log(norm) - 2 * (squared * log_p).sum(axis=-1) / norm
    return jnp.stack([first, entropy, first - second, powered], axis=-1)
