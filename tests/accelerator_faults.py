"""Losses with faults that the checks of compiled programs must find."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp


def cross_entropy(logits, labels):
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[None, :, None], axis=-1)
    return -own[..., 0].mean(axis=-1)


def with_callback(logits, labels):
    """Sends the loss to the host."""
    loss = cross_entropy(logits, labels)
    jax.debug.callback(functools.partial(mock.Mock()), loss)
    return loss


def with_float64(logits, labels):
    """Computes in float64."""
    with jax.enable_x64(True):
        doubled = logits.astype(jnp.float64) * 2
        return cross_entropy((doubled / 2).astype(jnp.float32), labels)


def with_gather(logits, labels):
    """Sorts over the batch, which is distributed over the chips."""
    return cross_entropy(logits + 0 * jnp.sort(logits, axis=1), labels)
