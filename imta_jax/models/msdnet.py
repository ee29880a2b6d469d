"""Multi-scale dense network (MSDNet, Huang et al., ICLR 2018) as a backbone.

A `NetworkPlan` (`plan.py`) gives every width; the modules here compute. Linear classifiers belong
to the heads, gradient equilibrium to the driver (`classifier.py`). Training, evaluation and
inference run faster forms over the same variables (`optimize.py`).
"""

import functools
import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.plan import Branch, Layer, NetworkPlan
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import ConvBNReLU

# One map per live scale, finest first; every scale has its own height, width and channels.
State = tuple[Float[Array, "N _ _ _"], ...]


class Stem(nnx.Module):
    """The first layer: each coarser map is a strided convolution of the next finer one."""

    def __init__(self, plan: NetworkPlan, image_channels: int, *, rngs: nnx.Rngs):
        init = get_initialization(plan.spec.initialization)
        unit = functools.partial(ConvBNReLU, init=init, rngs=rngs)
        channels = plan.stem_channels
        self.pools = plan.spec.stem == "imagenet"
        kernel, stride = (7, 2) if self.pools else (3, 1)
        self.first = unit(image_channels, channels[0], kernel, stride, use_bias=self.pools)
        self.coarser = nnx.List([unit(i, o, 3, 2) for i, o in itertools.pairwise(channels)])

    def __call__(self, images: Float[Array, "N H W C"]) -> State:
        """Maps images to one map per scale."""
        x = self.first(images)
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        state = [x]
        for convolution in self.coarser:
            state.append(convolution(state[-1]))
        return tuple(state)


class Bottleneck(nnx.Module):
    """A 1x1 convolution, then a 3x3 convolution with stride 1 or 2."""

    def __init__(self, branch: Branch, *, init: Initialization, rngs: nnx.Rngs):
        unit = functools.partial(ConvBNReLU, init=init, rngs=rngs)
        self.reduce = unit(branch.inputs, branch.width, 1)
        self.expand = unit(branch.width, branch.outputs, 3, branch.stride)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Maps x to [N, H / stride, W / stride, outputs]."""
        return self.expand(self.reduce(x))


class MultiScaleLayer(nnx.Module):
    """A dense layer at all live scales, followed by a transition where the plan has one.

    The output at a scale concatenates the input map of that scale, a strided branch from the next
    finer input map, and a normal branch from the input map of that scale.

    Attributes:
      strided: branches from the next finer scale, for output scales `unstrided` and coarser.
      normal: branches from the same scale, one per output scale.
      transition: 1x1 convolutions per output scale; empty where there is no transition.
      dropped: input scales, at the fine end, that the layer does not output.
      unstrided: output scales, at the fine end, without a strided branch: 1 at the network's finest
        scale, else 0.
    """

    def __init__(self, layer: Layer, *, init: Initialization, rngs: nnx.Rngs):
        unit = functools.partial(ConvBNReLU, init=init, rngs=rngs)
        branch = functools.partial(Bottleneck, init=init, rngs=rngs)
        self.strided = nnx.List([branch(b) for b in layer.strided if b is not None])
        self.normal = nnx.List([branch(b) for b in layer.normal])
        self.transition = nnx.List([unit(i, o, 1) for i, o in layer.transition or ()])
        self.dropped = len(layer.inputs) - len(layer.normal)
        self.unstrided = len(self.normal) - len(self.strided)

    def __call__(self, state: State) -> State:
        """Maps the input maps, finest first, to one map per output scale."""
        outputs = []
        for scale, normal in enumerate(self.normal):
            x = state[scale + self.dropped]
            parts = [x]
            if scale >= self.unstrided:
                finer = state[scale + self.dropped - 1]
                parts.append(self.strided[scale - self.unstrided](finer))
            parts.append(normal(x))
            y = jnp.concatenate(parts, axis=-1)
            outputs.append(self.transition[scale](y) if self.transition else y)
        return tuple(outputs)


class ExitFeatures(nnx.Module):
    """The features of an exit: two strided convolutions of the coarsest map, then pooling."""

    def __init__(self, inputs: int, width: int, *, init: Initialization, rngs: nnx.Rngs):
        unit = functools.partial(ConvBNReLU, init=init, rngs=rngs)
        self.convolutions = nnx.List([unit(i, width, 3, 2) for i in (inputs, width)])

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N F"]:
        """Maps the coarsest map to pooled features.

        The published networks end in 2x2 positions and a 2x2 average pool. The mean over all
        positions is the same there and works for images of any size.
        """
        for convolution in self.convolutions:
            x = convolution(x)
        return x.mean(axis=(1, 2))


class MSDNet(nnx.Module):
    """The backbone contract (`classifier.Backbone`) on a planned network.

    Attributes:
      plan: the topology.
      num_exits: number of exits.
      feature_widths: channels of the pooled features, per exit.
    """

    def __init__(self, plan: NetworkPlan, image_channels: int, *, rngs: nnx.Rngs):
        init = get_initialization(plan.spec.initialization)
        self.plan = plan
        self.num_exits = len(plan.stages)
        self.feature_widths = plan.head_widths
        self.first = Stem(plan, image_channels, rngs=rngs)
        layer = functools.partial(MultiScaleLayer, init=init, rngs=rngs)
        self.stages = nnx.List([nnx.List(map(layer, stage)) for stage in plan.stages])
        widths = zip(plan.head_inputs, plan.head_widths, strict=True)
        self.exits = nnx.List([ExitFeatures(i, w, init=init, rngs=rngs) for i, w in widths])

    def stem(self, images: Float[Array, "N H W C"]) -> State:
        """Maps images to the first state."""
        return self.first(images)

    def stage(self, i: int, state: State) -> State:
        """Runs the layers before exit i (from 0)."""
        for layer in self.stages[i]:
            state = layer(state)
        return state

    def exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        """Pooled features of exit i, from the coarsest map."""
        return self.exits[i](state[-1])
