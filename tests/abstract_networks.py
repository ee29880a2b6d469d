"""Abstract networks (shapes only), for counting costs and parameters."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from imta_jax.models import MultiExitClassifier, build_classifier


class ConstantRngs(nnx.Rngs):
    """Random keys that are all equal, for a network without values.

    `nnx.Rngs` counts its keys. Under `nnx.eval_shape`, the time of a count grows with the number of
    operations traced before it, so that a network takes a time quadratic in its layers.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract(
    fields: Mapping[str, Any], num_classes: int, shape: tuple[int, int, int]
) -> MultiExitClassifier:
    """The classifier of these fields; its variables have shapes and types only."""
    arguments = {"num_classes": num_classes, "image_shape": shape}
    return nnx.eval_shape(lambda: build_classifier(fields, **arguments, rngs=ConstantRngs(0)))
