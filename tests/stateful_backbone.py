"""A custom backbone with every kind of NNX state, for tests."""

import jax.numpy as jnp
import pytest
from flax import nnx

from imta_jax.runtime.registry import BACKBONES

NAME = "stateful"


class Counter(nnx.Variable):
    """A variable of another type than those of Flax."""


class StatefulBackbone(nnx.Module):
    """Two exits. Dropout, Flax's BatchNorm, a counter, a pair of moving means, and sown values."""

    def __init__(self, channels, *, rngs):
        self.num_exits, self.feature_widths = 2, (6, 8)
        self.first = nnx.Conv(channels, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.second = nnx.Conv(6, 8, (3, 3), strides=2, rngs=rngs)
        self.calls = Counter(jnp.zeros((), jnp.int32))
        self.means = nnx.Variable({"low": jnp.zeros(6), "high": jnp.zeros(6)})
        self.scale = nnx.Variable(2)

    def stem(self, images):
        return (nnx.relu(self.norm(self.first(images))),)

    def stage(self, i, state):
        (x,) = state
        if i == 0:
            if not self.dropout.deterministic:
                self.calls[...] += 1
                low = 0.9 * self.means.get_value()["low"] + 0.1 * x.mean((0, 1, 2))
                self.means.set_value({**self.means.get_value(), "low": low.astype(jnp.float32)})
            self.sow(nnx.Intermediate, "first_map", x)
            return (self.dropout(x),)
        return (nnx.relu(self.second(self.dropout(x))),)

    def exit_features(self, i, state):
        return state[0].mean(axis=(1, 2))


def register(patch: pytest.MonkeyPatch, make=StatefulBackbone) -> None:
    """Adds the backbone, or that of another factory, to those that configs can name."""

    def make_backbone(options, *, num_classes, image_shape, rngs):
        return make(image_shape[2], rngs=rngs)

    patch.setitem(BACKBONES._components, NAME, make_backbone)
