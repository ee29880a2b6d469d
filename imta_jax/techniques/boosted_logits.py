"""Boosted logits (BoostNet, Yu et al., "Boosted Dynamic Neural Networks", AAAI 2023).

Each exit corrects the prediction of the exits before it, as in gradient boosting. With the linear
layer's output o_i and sg for stopped gradients,

    z_i = o_i + weight * sg(z_{i-1}),    z_0 = o_0    (weight 0.5 in the authors' code)

and z_i are the logits of exit i, in training and at inference. The loss is the sum of the exits'
cross-entropies. The authors train all parameters at once, with gradient equilibrium on the coarsest
map, which is `config.model.heads = "boosted"` without a phase II.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.runtime.registry import check_names, register_heads
from imta_jax.techniques.inline_collaboration import IndependentHeads, previous_logits

DEFAULT_WEIGHT = 0.5
_OPTIONS = ("initialization", "stop_gradient", "weight")


class BoostedHeads(IndependentHeads):
    """One linear layer per exit, plus `weight` times the previous exit's logits.

    `ResidualHeads` are the case of weight 1.

    Attributes:
      weight: factor of the previous exit's logits.
      stop_gradient: whether the gradient along that path is stopped, as in the source.
    """

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        *,
        weight: float = DEFAULT_WEIGHT,
        stop_gradient: bool = True,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        super().__init__(feature_widths, num_classes, init=init, rngs=rngs)
        self.weight, self.stop_gradient = weight, stop_gradient

    def __call__(
        self, i: int, features: Float[Array, "N F"], carry: Float[Array, "N K"] | None
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K"]]:
        """Logits of exit i, which are also the carry."""
        logits, _ = super().__call__(i, features, None)
        if i > 0:
            logits = logits + self.weight * previous_logits(carry, self.stop_gradient)
        return logits, logits


@register_heads("boosted")
def make_boosted_heads(
    options: Any, *, feature_widths: Sequence[int], num_classes: int, rngs: nnx.Rngs
) -> BoostedHeads:
    """Builds `BoostedHeads` from the options `weight`, `initialization` and `stop_gradient`.

    Raises:
      InputError: an unknown option, or a weight that is not a number of at least 0.
    """
    check_names(options, _OPTIONS, "option of the heads")
    weight = options.get("weight", DEFAULT_WEIGHT)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight >= 0:
        raise InputError(f"option weight of boosted heads must be at least 0; found {weight!r}")
    return BoostedHeads(
        feature_widths,
        num_classes,
        weight=float(weight),
        stop_gradient=options.stop_gradient,
        init=get_initialization(options.initialization),
        rngs=rngs,
    )
