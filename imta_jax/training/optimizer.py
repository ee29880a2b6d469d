"""Stochastic gradient descent with the paper's schedule (Sec. 4, "Training Details")."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from imta_jax.errors import InputError


def step_schedule(
    learning_rate: float, drops: Sequence[float], drop_factor: float, total_steps: int
) -> optax.Schedule:
    """A learning rate that is multiplied by `drop_factor` at fractions of the training.

    Args:
      learning_rate: the initial one.
      drops: fractions of `total_steps` in 0..1, for example (0.5, 0.75), the paper's for CIFAR.
      drop_factor: 0.1 in the paper.
      total_steps: steps of the phase.

    Raises:
      InputError: a drop or `drop_factor` outside 0..1, or a learning rate that is not above 0.
    """
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be above 0; found {learning_rate}")
    if not 0 < drop_factor <= 1:
        raise InputError(f"drop_factor must be above 0 and at most 1; found {drop_factor}")
    if any(not 0 <= drop <= 1 for drop in drops):
        raise InputError(
            f"learning_rate_drops must be fractions of the training in 0 to 1; found {drops}"
        )
    starts = np.array([0, *(round(drop * total_steps) for drop in drops)])
    factors = np.array([learning_rate, *(drop_factor for _ in drops)], np.float32)
    # Unlike a chain of scalars, XLA on CPU does not recompute a reduction for every parameter.
    return lambda step: jnp.prod(jnp.where(step >= starts, factors, 1))


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay is added to the gradient of every parameter, then momentum.

    Args:
      schedule: learning rate by step.
      momentum: 0.9 in the paper.
      nesterov: True in the paper's text, False in the published code.
      weight_decay: 1e-4 in the paper, on all parameters.

    Raises:
      InputError: a momentum below 0 or not below 1, or a negative weight decay.
    """
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1; found {momentum}")
    if weight_decay < 0:
        raise InputError(f"weight_decay must not be negative; found {weight_decay}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
