"""Inline subnetwork collaboration (paper Sec. 3.2): an exit's prediction is an input of the next.

Heads map the pooled features of one exit at a time to logits:

    logits, carry = heads(i, features, carry)      # carry is None before the first exit

`IndependentHeads` carry nothing (phase I, and phase II without collaboration). `ResidualHeads` add
the previous logits (the paper's identity transfer). `TransferHeads` concatenate a learned transform
of the previous logits to the features (published code). The paper stops the gradient along this
path, so that later exits do not disturb earlier ones; the published code does not.
"""

from collections.abc import Sequence
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax import options
from imta_jax.errors import InputError
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.initialization import (
    INITIALIZATIONS,
    Initialization,
    get_initialization,
)
from imta_jax.nn.layers import linear
from imta_jax.runtime.registry import check_names, register_heads

TRANSFERS = get_args(options.Transfer)


class IndependentHeads(nnx.Module):
    """One linear layer per exit."""

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        *,
        init: Initialization = INITIALIZATIONS["he_normal"],
        rngs: nnx.Rngs,
    ):
        self.linears = nnx.List(
            [linear(width, num_classes, init=init, rngs=rngs) for width in feature_widths]
        )

    def __call__(
        self, i: int, features: Float[Array, "N F"], carry: Float[Array, "N K"] | None
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K"] | None]:
        """Logits of exit i; the carry stays None."""
        return self.linears[i](features), None

    def start_from(self, earlier: "IndependentHeads") -> None:
        """Copies the linear layers of `earlier` heads (Sec. 4)."""
        for layer, earlier_layer in zip(self.linears, earlier.linears, strict=True):
            # Copies: the phase-I heads must not change with these.
            layer.kernel[...] = jnp.array(earlier_layer.kernel[...])
            assert layer.bias is not None and earlier_layer.bias is not None
            layer.bias[...] = jnp.array(earlier_layer.bias[...])


class ResidualHeads(IndependentHeads):
    """Identity transfer: each exit adds the previous exit's logits to its own."""

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
        self, i: int, features: Float[Array, "N F"], carry: Float[Array, "N K"] | None
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K"]]:
        """Logits of exit i, which are also the carry."""
        logits, _ = super().__call__(i, features, None)
        if i > 0:
            previous = previous_logits(carry, self.stop_gradient)
            chex.assert_equal_shape([logits, previous])
            logits = logits + previous
        return logits, logits


class TransferHeads(nnx.Module):
    """Learned transfer: ReLU(BatchNorm(Linear(previous logits))) concatenated to the features.

    The transform is as wide as the features of its exit. Every linear layer but the first reads
    twice that width: the features, then the transform.
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
        inputs = [width if i == 0 else 2 * width for i, width in enumerate(feature_widths)]
        self.linears = nnx.List([linear(w, num_classes, init=init, rngs=rngs) for w in inputs])
        later = feature_widths[1:]
        self.transfers = nnx.List([linear(num_classes, w, init=init, rngs=rngs) for w in later])
        self.norms = nnx.List([BatchNorm(w, rngs=rngs) for w in later])

    def __call__(
        self, i: int, features: Float[Array, "N F"], carry: Float[Array, "N K"] | None
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K"]]:
        """Logits of exit i, which are also the carry."""
        if i > 0:
            transform = self.transfers[i - 1](previous_logits(carry, self.stop_gradient))
            transform = jax.nn.relu(self.norms[i - 1](transform))
            features = jnp.concatenate([features, transform], axis=-1)
        logits = self.linears[i](features)
        return logits, logits

    def start_from(self, earlier: IndependentHeads) -> None:
        """Copies the linear layers of `earlier` heads; weights of the transform start at zero.

        The zeros are in the linear layer that reads the transform. Zeros in the transform itself
        would have no gradient.
        """
        for layer, earlier_layer in zip(self.linears, earlier.linears, strict=True):
            kernel = earlier_layer.kernel[...]
            zeros = jnp.zeros_like(layer.kernel[...])
            layer.kernel[...] = zeros.at[: kernel.shape[0]].set(kernel)
            assert layer.bias is not None and earlier_layer.bias is not None
            layer.bias[...] = jnp.array(earlier_layer.bias[...])


def previous_logits(carry: Float[Array, "N K"] | None, stop_gradient: bool) -> Float[Array, "N K"]:
    """The previous exit's logits, with or without the gradient along the path.

    Raises:
      InputError: there is no carry.
    """
    if carry is None:
        raise InputError("carry must be the previous exit's logits [N, K]; found None")
    return jax.lax.stop_gradient(carry) if stop_gradient else carry


# Options of the heads of this package. `models.build` sets both unless the config does.
_OPTIONS = ("initialization", "stop_gradient")


@register_heads("none")
@register_heads("independent")
def make_independent_heads(
    options: Any, *, feature_widths: Sequence[int], num_classes: int, rngs: nnx.Rngs
) -> IndependentHeads:
    """Builds `IndependentHeads` from the option `initialization`."""
    return IndependentHeads(feature_widths, num_classes, init=_initialization(options), rngs=rngs)


@register_heads("identity")
def make_residual_heads(
    options: Any, *, feature_widths: Sequence[int], num_classes: int, rngs: nnx.Rngs
) -> ResidualHeads:
    """Builds `ResidualHeads` from the options `initialization` and `stop_gradient`."""
    fields = {"init": _initialization(options), "stop_gradient": options.stop_gradient}
    return ResidualHeads(feature_widths, num_classes, **fields, rngs=rngs)


@register_heads("linear")
def make_transfer_heads(
    options: Any, *, feature_widths: Sequence[int], num_classes: int, rngs: nnx.Rngs
) -> TransferHeads:
    """Builds `TransferHeads` from the options `initialization` and `stop_gradient`."""
    fields = {"init": _initialization(options), "stop_gradient": options.stop_gradient}
    return TransferHeads(feature_widths, num_classes, **fields, rngs=rngs)


def _initialization(options: Any) -> Initialization:
    check_names(options, _OPTIONS, "option of the heads")
    return get_initialization(options.initialization)
