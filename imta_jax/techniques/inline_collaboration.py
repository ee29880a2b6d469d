"""Inline subnetwork collaboration (paper Sec. 3.2): heads that hand a prediction to the next exit.

Heads turn the pooled features of one exit at a time into logits:

    logits, carry = heads(i, features, carry)      # carry is None before the first exit

`IndependentHeads` carry nothing (phase I, and phase II without collaboration); `ResidualHeads` add
the previous logits (the paper's identity transfer); `TransferHeads` put a small learned transform
of them beside the features (the reference code). The paper discards the gradient along the path, so
that no exit is disturbed by a later one; the reference code keeps it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.initialization import Initialization
from imta_jax.nn.layers import linear

# What travels from one exit to the next: nothing, the logits themselves, or a learned transform.
TRANSFERS = ("none", "identity", "linear")


class IndependentHeads(nnx.Module):
    """One linear layer per exit, nothing handed on."""

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        *,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.linears = nnx.List(
            [linear(width, num_classes, init=init, rngs=rngs) for width in feature_widths]
        )

    def __call__(
        self, i: int, features: jax.Array, carry: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits [N, K] of exit i from its features [N, width]; the carry stays None."""
        return self.linears[i](features), None

    def start_from(self, earlier: "IndependentHeads") -> None:
        """Copies the linear layers of `earlier` heads, to go on training them (Sec. 4)."""
        for own, other in zip(self.linears, earlier.linears, strict=True):
            # Copied, not shared: the phase-I heads stay as they are beside these.
            own.kernel[...] = jnp.array(other.kernel[...])
            assert own.bias is not None and other.bias is not None
            own.bias[...] = jnp.array(other.bias[...])


class ResidualHeads(IndependentHeads):
    """Identity transfer: every exit adds its own correction to the previous exit's logits."""

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        *,
        stop_gradient: bool,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        super().__init__(feature_widths, num_classes, init=init, rngs=rngs)
        self.stop_gradient = stop_gradient

    def __call__(
        self, i: int, features: jax.Array, carry: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits [N, K] of exit i; they are what is carried on."""
        logits, _ = super().__call__(i, features, None)
        if i > 0:
            logits = logits + _handed_on(carry, self.stop_gradient)
        return logits, logits


class TransferHeads(nnx.Module):
    """Learned transfer: ReLU(BatchNorm(Linear(previous logits))) concatenated to the features.

    The transform is as wide as the features it joins, so that every linear layer but the first
    reads twice its exit's width: the first half the features, the second the transfer.
    """

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        *,
        stop_gradient: bool,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.stop_gradient = stop_gradient
        joined = [width if i == 0 else 2 * width for i, width in enumerate(feature_widths)]
        self.linears = nnx.List([linear(w, num_classes, init=init, rngs=rngs) for w in joined])
        later = feature_widths[1:]
        self.transfers = nnx.List([linear(num_classes, w, init=init, rngs=rngs) for w in later])
        self.norms = nnx.List([BatchNorm(w, rngs=rngs) for w in later])

    def __call__(
        self, i: int, features: jax.Array, carry: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits [N, K] of exit i from [N, width]; the logits are what is carried on."""
        if i > 0:
            prior = self.transfers[i - 1](_handed_on(carry, self.stop_gradient))
            prior = jax.nn.relu(self.norms[i - 1](prior))
            features = jnp.concatenate([features, prior], axis=-1)
        logits = self.linears[i](features)
        return logits, logits

    def start_from(self, earlier: IndependentHeads) -> None:
        """Copies `earlier` linear layers; the transfer starts without influence (zero weights).

        The zeros stand in the linear layer that reads the transfer and not in the transform, whose
        gradient would vanish with it.
        """
        for own, other in zip(self.linears, earlier.linears, strict=True):
            width = other.kernel[...].shape[0]
            own.kernel[...] = jnp.zeros_like(own.kernel[...]).at[:width].set(other.kernel[...])
            assert own.bias is not None and other.bias is not None
            own.bias[...] = jnp.array(other.bias[...])


def _handed_on(carry: jax.Array | None, stop_gradient: bool) -> jax.Array:
    """The previous exit's logits [N, K], with or without the gradient along the path."""
    if carry is None:
        raise InputError("this exit needs the previous exit's logits as carry; found None")
    return jax.lax.stop_gradient(carry) if stop_gradient else carry
