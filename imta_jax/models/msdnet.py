"""Multi-scale dense network (MSDNet, Huang et al., ICLR 2018) as a backbone.

Modules are built from a `NetworkPlan` and hold no decision of their own. The classifier's linear
layers belong to the heads; gradient equilibrium belongs to the driver (`classifier.py`).
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.convolution import convolve
from imta_jax.layers import ConvBNReLU, Initialization, initialization
from imta_jax.models.plan import Branch, Layer, NetworkPlan

State = tuple[jax.Array, ...]


class Stem(nnx.Module):
    """The first map of every scale: each coarser one by a strided convolution of the finer."""

    def __init__(self, plan: NetworkPlan, image_channels: int, *, rngs: nnx.Rngs):
        init = initialization(plan.spec.initialization)
        channels = plan.stem_channels
        self.pools = plan.spec.stem == "imagenet"
        kernel, stride = (7, 2) if self.pools else (3, 1)
        self.first = ConvBNReLU(
            image_channels, channels[0], kernel, stride, use_bias=self.pools, init=init, rngs=rngs
        )
        self.coarser = nnx.List(
            [
                ConvBNReLU(finer, coarser, 3, 2, init=init, rngs=rngs)
                for finer, coarser in itertools.pairwise(channels)
            ]
        )

    def __call__(self, images: jax.Array) -> State:
        """Maps images [N, H, W, C] to one map per scale, finest first."""
        x = self.first(images)
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        state = [x]
        for convolution in self.coarser:
            state.append(convolution(state[-1]))
        return tuple(state)


class Bottleneck(nnx.Module):
    """1x1 convolution, then 3x3, possibly strided."""

    def __init__(self, branch: Branch, *, init: Initialization, rngs: nnx.Rngs):
        self.reduce = ConvBNReLU(branch.inputs, branch.width, 1, init=init, rngs=rngs)
        self.expand = ConvBNReLU(
            branch.width, branch.outputs, 3, branch.stride, init=init, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, inputs] to [N, H/stride, W/stride, outputs]."""
        return self.expand(self.reduce(x))


def _reduced_together(x: jax.Array, bottlenecks: Sequence[Bottleneck]) -> list[jax.Array]:
    """What each bottleneck makes of x [N, H, W, inputs] before its 3x3 convolution.

    Their 1x1 convolutions are done as one of concatenated filters: x is read once, and the product
    is wider than a processor's vectors, which one branch alone often is not.
    """
    widths = [bottleneck.reduce.norm.num_features for bottleneck in bottlenecks]
    kernel = jnp.concatenate([b.reduce.conv.kernel[...] for b in bottlenecks], axis=-1)
    maps = jnp.split(convolve(x, kernel), list(itertools.accumulate(widths))[:-1], axis=-1)
    norms = (bottleneck.reduce.norm for bottleneck in bottlenecks)
    return [jax.nn.relu(norm(y)) for norm, y in zip(norms, maps, strict=True)]


class MultiScaleLayer(nnx.Module):
    """A dense layer at all live scales: input, strided and normal branch are concatenated."""

    def __init__(self, layer: Layer, *, init: Initialization, rngs: nnx.Rngs):
        self.strided = nnx.List(
            [Bottleneck(b, init=init, rngs=rngs) for b in layer.strided if b is not None]
        )
        self.normal = nnx.List([Bottleneck(b, init=init, rngs=rngs) for b in layer.normal])
        self.transition = nnx.List(
            [ConvBNReLU(i, o, 1, init=init, rngs=rngs) for i, o in layer.transition or ()]
        )

    def __call__(self, state: State) -> State:
        """Maps the live maps, finest first, to those of the scales that stay alive."""
        strided, normal = self._branches(state)
        outputs = []
        for x, *parts in zip(state[-len(normal) :], strided, normal, strict=True):
            outputs.append(jnp.concatenate([x, *(y for y in parts if y is not None)], axis=-1))
        if self.transition:
            outputs = [shrink(x) for shrink, x in zip(self.transition, outputs, strict=True)]
        return tuple(outputs)

    def _branches(self, state: State) -> tuple[list[jax.Array | None], list[jax.Array | None]]:
        """The strided and the normal branch's output per scale that stays alive.

        A map is read by its own scale's normal branch and by the next coarser one's strided branch.
        """
        dropped = len(state) - len(self.normal)
        # Where no scale is dropped the finest has no finer map to read: one strided branch less.
        without_strided = len(self.normal) - len(self.strided)
        strided, normal = ([None] * len(self.normal) for _ in range(2))
        for scale, x in enumerate(state, start=-dropped):
            readers = []
            if scale >= 0:
                readers.append((normal, scale, self.normal[scale]))
            if without_strided <= scale + 1 < len(self.normal):
                readers.append((strided, scale + 1, self.strided[scale + 1 - without_strided]))
            reduced = _reduced_together(x, [bottleneck for _, _, bottleneck in readers])
            for (outputs, at, bottleneck), y in zip(readers, reduced, strict=True):
                outputs[at] = bottleneck.expand(y)
        return strided, normal


class ExitFeatures(nnx.Module):
    """What an exit computes from the coarsest map: two strided convolutions and pooling."""

    def __init__(self, inputs: int, width: int, *, init: Initialization, rngs: nnx.Rngs):
        self.convolutions = nnx.List(
            [ConvBNReLU(i, width, 3, 2, init=init, rngs=rngs) for i in (inputs, width)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the coarsest map [N, H, W, inputs] to pooled features [N, width].

        The published networks end in 2x2 positions, which a 2x2 average pool makes one; the mean
        over all positions is the same there and serves images of any size.
        """
        for convolution in self.convolutions:
            x = convolution(x)
        return x.mean(axis=(1, 2))


class MSDNet(nnx.Module):
    """The backbone contract (see `classifier.Backbone`) on a planned network.

    Attributes:
      plan: the topology it was built from.
      num_exits: k.
      feature_widths: channels of the pooled features of each exit.
    """

    def __init__(self, plan: NetworkPlan, image_channels: int, *, rngs: nnx.Rngs):
        init = initialization(plan.spec.initialization)
        self.plan = plan
        self.num_exits = len(plan.stages)
        self.feature_widths = plan.head_widths
        self.first = Stem(plan, image_channels, rngs=rngs)
        self.stages = nnx.List(
            [
                nnx.List([MultiScaleLayer(layer, init=init, rngs=rngs) for layer in stage])
                for stage in plan.stages
            ]
        )
        widths = zip(plan.head_inputs, plan.head_widths, strict=True)
        self.exits = nnx.List([ExitFeatures(i, w, init=init, rngs=rngs) for i, w in widths])

    def stem(self, images: jax.Array) -> State:
        """Maps images [N, H, W, C] to the first state."""
        return self.first(images)

    def stage(self, i: int, state: State) -> State:
        """Runs the layers before exit i (from 0)."""
        for layer in self.stages[i]:
            state = layer(state)
        return state

    def exit_features(self, i: int, state: State) -> jax.Array:
        """Pooled features [N, feature_widths[i]] of exit i, from the coarsest map."""
        return self.exits[i](state[-1])
