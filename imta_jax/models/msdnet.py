"""Multi-scale dense network (MSDNet, Huang et al., ICLR 2018) as a backbone.

Modules are built from a `NetworkPlan` and hold no decision of their own. The classifier's linear
layers belong to the heads; gradient equilibrium belongs to the driver (`classifier.py`).
"""

import itertools
from collections.abc import Sequence, Set

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.models.plan import Branch, Layer, NetworkPlan
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.cpu.no_inline import materialized
from imta_jax.nn.layers import ConvBNReLU, Initialization, initialization, normalize_together

State = tuple[jax.Array, ...]
Pending = tuple[tuple[jax.Array | None, ...], ...]


class Stem(nnx.Module):
    """The first map of every scale: each coarser one by a strided convolution of the finer."""

    layout = Layout.IMAGES_FIRST

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
        """Maps images [N, H, W, C] to one map per scale in the layout, finest first."""
        x = self.first(self.layout.turned(images))
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
    is wider than a processor's vectors, which one branch alone often is not. So are the
    normalisations.
    """
    norms = [bottleneck.reduce.norm for bottleneck in bottlenecks]
    layout = norms[0].layout
    kernels = [bottleneck.reduce.conv.kernel[...] for bottleneck in bottlenecks]
    if not all(norm.is_taken_over for norm in norms):
        y = convolve(x, jnp.concatenate(kernels, axis=-1), layout=layout)
        return normalize_together(norms, y, relu=True)
    ends = list(itertools.accumulate(norm.num_features for norm in norms))[:-1]
    folded = (norm.taken_over(kernel) for norm, kernel in zip(norms, kernels, strict=True))
    kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*folded, strict=True))
    y = convolve(x, kernel, layout=layout) + layout.per_channel(bias.astype(x.dtype))
    return jnp.split(jax.nn.relu(y), ends, axis=layout.channels)


class MultiScaleLayer(nnx.Module):
    """A dense layer at all live scales: input, strided and normal branch are concatenated."""

    layout = Layout.IMAGES_FIRST

    def __init__(self, layer: Layer, *, init: Initialization, rngs: nnx.Rngs):
        self.strided = nnx.List(
            [Bottleneck(b, init=init, rngs=rngs) for b in layer.strided if b is not None]
        )
        self.normal = nnx.List([Bottleneck(b, init=init, rngs=rngs) for b in layer.normal])
        self.transition = nnx.List(
            [ConvBNReLU(i, o, 1, init=init, rngs=rngs) for i, o in layer.transition or ()]
        )
        self.dropped = len(layer.inputs) - len(layer.normal)
        # Where no scale is dropped the finest has no finer map to read: one strided branch less.
        self.unstrided = len(self.normal) - len(self.strided)

    def __call__(self, state: State, wanted: Set[int] | None = None) -> State:
        """Maps the live maps, finest first, to those of the scales that stay alive.

        Args:
          state: maps [N, H, W, C], finest first; those that no wanted scale reads may be None.
          wanted: scales to compute, 0 being the finest that stays alive; default, all.

        Returns:
          A map per scale that stays alive, None for those not wanted.
        """
        wanted = set(range(len(self.normal))) if wanted is None else wanted
        strided, normal = self._branches(state, wanted)
        outputs: list[jax.Array | None] = [None] * len(self.normal)
        for scale in wanted:
            parts = (state[scale + self.dropped], strided.get(scale), normal[scale])
            parts = [y for y in parts if y is not None]
            joined = jnp.concatenate(parts, axis=self.layout.channels)
            if self.transition:
                joined = self.transition[scale](joined)
            # Images first, XLA's convolutions have the map computed once as it is.
            channels_first = self.layout is Layout.CHANNELS_FIRST
            outputs[scale] = materialized(joined) if channels_first else joined
        return tuple(outputs)

    def reads(self, wanted: Set[int]) -> set[int]:
        """Indices in the state of the maps that the wanted scales are computed from."""
        own = {scale + self.dropped for scale in wanted}
        return own | {scale + self.dropped - 1 for scale in wanted if scale >= self.unstrided}

    def _branches(
        self, state: State, wanted: Set[int]
    ) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        """The strided and the normal branches' outputs by scale.

        A map is read by its own scale's normal branch and by the next coarser one's strided branch.
        """
        strided: dict[int, jax.Array] = {}
        normal: dict[int, jax.Array] = {}
        for scale, x in enumerate(state, start=-self.dropped):
            readers = []
            if scale in wanted:
                readers.append((normal, scale, self.normal[scale]))
            if scale + 1 in wanted and scale + 1 >= self.unstrided:
                readers.append((strided, scale + 1, self.strided[scale + 1 - self.unstrided]))
            if not readers:
                continue
            reduced = _reduced_together(x, [bottleneck for _, _, bottleneck in readers])
            for (outputs, at, bottleneck), y in zip(readers, reduced, strict=True):
                outputs[at] = bottleneck.expand(y)
        return strided, normal


class ExitFeatures(nnx.Module):
    """What an exit computes from the coarsest map: two strided convolutions and pooling."""

    layout = Layout.IMAGES_FIRST

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
        pooled = x.mean(axis=(1, 2))
        return pooled.T if self.layout is Layout.CHANNELS_FIRST else pooled


class MSDNet(nnx.Module):
    """The backbone contract (see `classifier.Backbone`) on a planned network.

    Attributes:
      plan: the topology it was built from.
      num_exits: k.
      feature_widths: channels of the pooled features of each exit.
      layout: Order of the axes of every map in a state; see `imta_jax.nn.cpu.layout`.
    """

    layout = Layout.IMAGES_FIRST

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

    def stage_until_exit(self, i: int, state: State) -> tuple[State, Pending]:
        """Runs of stage i what its exit reads: the finer maps of the last layers can wait.

        An image that leaves never needs them, one that stays gets them from `rest_of_stage`.

        Args:
          i: the stage, from 0.
          state: as for `stage`.

        Returns:
          (state for `exit_features`, what `rest_of_stage` goes on from).
        """
        layers, states = self.stages[i], [state]
        for layer, wanted in zip(layers, _needed_by_exit(layers), strict=True):
            states.append(layer(states[-1], wanted))
        return states[-1], _kept(layers, states)

    def rest_of_stage(self, i: int, pending: Pending) -> State:
        """The state after stage i, from what `stage_until_exit` left."""
        layers, state = self.stages[i], pending[0]
        for layer, wanted, known in zip(layers, _needed_by_exit(layers), pending[1:], strict=True):
            rest = layer(state, set(range(len(layer.normal))) - wanted)
            state = tuple(k if r is None else r for k, r in zip(known, rest, strict=True))
        return state

    def exit_features(self, i: int, state: State) -> jax.Array:
        """Pooled features [N, feature_widths[i]] of exit i, from the coarsest map."""
        return self.exits[i](state[-1])


def _needed_by_exit(layers: Sequence[MultiScaleLayer]) -> list[set[int]]:
    """The scales of each layer's output that the exit after the last one depends on.

    Of the last layer the coarsest, of the one before the two coarsest, and so on.
    """
    scales = [len(layer.normal) for layer in layers]
    return [
        set(range(max(0, count - back), count))
        for count, back in zip(scales, range(len(layers), 0, -1), strict=True)
    ]


def _kept(layers: Sequence[MultiScaleLayer], states: Sequence[State]) -> Pending:
    """Of the states before, between and after the layers the maps that the rest is made of."""
    needed = _needed_by_exit(layers)
    kept = []
    for j, layer in enumerate(layers):
        read = layer.reads(set(range(len(layer.normal))) - needed[j])
        kept.append(tuple(x if n in read else None for n, x in enumerate(states[j])))
    return (*kept, states[-1])
