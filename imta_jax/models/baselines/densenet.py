"""DenseNet (Huang et al., CVPR 2017) as a backbone, with one exit or with several.

A layer concatenates its output to its input. It starts with normalization and ReLU. With
`bottleneck` (DenseNet-B) a 1x1 convolution to 4 times the growth rate precedes the 3x3 convolution.
Between dense blocks a 1x1 convolution keeps the fraction `reduction` of the channels (DenseNet-C)
and a 2x2 average pool halves the resolution. With exits after layers it is the multi-exit DenseNet
that MSDNet was compared with (DenseNet^MC).
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.models.baselines.single_scale import ImageNetStem, SingleScaleBackbone
from imta_jax.models.plan import STEMS
from imta_jax.models.spec_fields import check_depths, check_exits, check_one_of, check_positive
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import conv

_BOTTLENECK_FACTOR = 4


@dataclasses.dataclass(frozen=True)
class DenseNetSpec:
    """The fields of `config.model` for a DenseNet.

    Attributes:
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, max-pool).
      channels: channels of the stem.
      growth_rate: channels that a layer adds.
      depths: layers per dense block (per resolution).
      bottleneck: whether a layer has a 1x1 convolution before its 3x3 convolution.
      reduction: fraction of channels that a transition keeps, above 0 and at most 1.
      exits: layers, from 1, that an exit follows; the last layer always has one.
      initialization: a name in `imta_jax.nn.initialization.INITIALIZATIONS`.
    """

    stem: str
    channels: int
    growth_rate: int
    depths: tuple[int, ...]
    bottleneck: bool
    reduction: float
    exits: tuple[int, ...] = ()
    initialization: str = "he_normal"

    def __post_init__(self):
        check_one_of(self, "stem", STEMS)
        check_positive(self, "channels", "growth_rate")
        check_depths(self)
        check_exits(self)
        if not 0 < self.reduction <= 1 or self.reduction * self.channels < 1:
            raise InputError(
                "config.model.reduction must be above 0, at most 1, and leave at least one of "
                f"{self.channels} channels; found {self.reduction}"
            )


class NormReLUConv(nnx.Module):
    """Batch normalization, ReLU, convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, init: Initialization, rngs: nnx.Rngs
    ):
        self.norm = BatchNorm(inputs, rngs=rngs)
        self.conv = conv(inputs, outputs, kernel, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H W O"]:
        """Maps `inputs` channels I to `outputs` channels O."""
        return self.conv(self.norm(x, relu=True))


class DenseLayer(nnx.Module):
    """Adds `growth` channels to its input; the first layer of later blocks has a transition."""

    def __init__(
        self,
        inputs: int,
        growth: int,
        bottleneck: bool,
        transition: "Transition | None",
        *,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.transition = nnx.List([transition] if transition else [])
        width = _BOTTLENECK_FACTOR * growth if bottleneck else inputs
        self.reduce = nnx.List(
            [NormReLUConv(inputs, width, 1, init=init, rngs=rngs)] if bottleneck else []
        )
        self.expand = NormReLUConv(width, growth, 3, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H2 W2 O"]:
        """Maps I channels to O = I + growth; with a transition, I is reduced and H, W halved."""
        for transition in self.transition:
            x = transition(x)
        added = x
        for reduce in self.reduce:
            added = reduce(added)
        return jnp.concatenate([x, self.expand(added)], axis=-1)


class Transition(nnx.Module):
    """1x1 convolution and 2x2 average pool between dense blocks."""

    def __init__(self, inputs: int, outputs: int, *, init: Initialization, rngs: nnx.Rngs):
        self.reduce = NormReLUConv(inputs, outputs, 1, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H2 W2 O"]:
        """Halves H and W, rounding down to at least 1."""
        x = self.reduce(x)
        window = tuple(min(2, side) for side in x.shape[1:3])
        return nnx.avg_pool(x, window, strides=window)


def densenet(spec: DenseNetSpec, image_channels: int, *, rngs: nnx.Rngs) -> SingleScaleBackbone:
    """Builds a DenseNet."""
    init = get_initialization(spec.initialization)
    small = spec.stem == "cifar"
    # The first layer normalizes its input, so the stem for small images is a bare convolution.
    if small:
        stem = conv(image_channels, spec.channels, 3, init=init, rngs=rngs)
    else:
        stem = ImageNetStem(image_channels, spec.channels, init=init, rngs=rngs)
    blocks, widths = _layers(spec, init, rngs)
    return SingleScaleBackbone(
        stem,
        blocks,
        widths,
        exits=spec.exits,
        small_images=small,
        preactivated=True,
        init=init,
        rngs=rngs,
    )


def _layers(
    spec: DenseNetSpec, init: Initialization, rngs: nnx.Rngs
) -> tuple[list[DenseLayer], list[int]]:
    """Returns all layers and the channels after each."""
    layers, widths, channels = [], [], spec.channels
    for block, depth in enumerate(spec.depths):
        for number in range(depth):
            transition = None
            if block and number == 0:
                reduced = math.floor(spec.reduction * channels)
                transition = Transition(channels, reduced, init=init, rngs=rngs)
                channels = reduced
            layers.append(
                DenseLayer(
                    channels, spec.growth_rate, spec.bottleneck, transition, init=init, rngs=rngs
                )
            )
            channels += spec.growth_rate
            widths.append(channels)
    return layers, widths
