"""ResNet (He et al., CVPR 2016) as a backbone, with one exit or with several.

For CIFAR (their Sec. 4.2) it has 6n+2 layers: a 3x3 convolution, three groups of n basic blocks
with 16, 32 and 64 channels, and a linear layer. Where a group halves the resolution, the shortcut
drops every second pixel and pads the channels with zeros (option A, without parameters). For
ImageNet (their Table 1) there are four groups of basic or bottleneck blocks, and shortcuts that
change shape are 1x1 convolutions (option B). The stride of a bottleneck is in its 3x3 convolution,
as in most published weights: 4.1 G multiply-adds for 50 layers. The original version, with the
stride in the first 1x1 convolution, has 3.9 G.

With exits after blocks it is the multi-exit ResNet that MSDNet was compared with (ResNet^MC).
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.baselines.single_scale import ImageNetStem, SingleScaleBackbone
from imta_jax.models.plan import STEMS
from imta_jax.models.spec_fields import check_depths, check_exits, check_one_of, check_positive
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import ConvBNReLU, ConvNorm

_BOTTLENECK_FACTOR = 4


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """The fields of `config.model` for a ResNet.

    Attributes:
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, max-pool).
      channels: channels of the first group; each later group has twice as many.
      depths: blocks per group (per resolution).
      bottleneck: whether blocks are 1x1, 3x3, 1x1 convolutions with 4 times the channels at their
        output, instead of two 3x3 convolutions.
      exits: blocks, from 1, that an exit follows; the last block always has one.
      initialization: a name in `imta_jax.nn.initialization.INITIALIZATIONS`.
    """

    stem: str
    channels: int
    depths: tuple[int, ...]
    bottleneck: bool = False
    exits: tuple[int, ...] = ()
    initialization: str = "he_normal"

    def __post_init__(self):
        check_one_of(self, "stem", STEMS)
        check_positive(self, "channels")
        check_depths(self)
        check_exits(self)


class ResidualBlock(nnx.Module):
    """ReLU(shortcut + residual), basic or bottleneck."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        *,
        bottleneck: bool = False,
        projects: bool = False,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        """`projects`: use a 1x1 convolution where the shape of the shortcut changes (option B)."""
        outputs = width * _BOTTLENECK_FACTOR if bottleneck else width
        # (inputs, outputs, kernel, stride) of each convolution on the residual path.
        path = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            path = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.inner = nnx.List([ConvBNReLU(*sizes, init=init, rngs=rngs) for sizes in path[:-1]])
        self.last = ConvNorm(*path[-1], init=init, rngs=rngs)
        self.stride, self.padding = stride, outputs - inputs
        projects = projects and (stride > 1 or outputs != inputs)
        self.projection = nnx.List(
            [ConvNorm(inputs, outputs, 1, stride, init=init, rngs=rngs)] if projects else []
        )

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H2 W2 O"]:
        """Divides H and W by the stride, rounding up."""
        residual = x
        for convolution in self.inner:
            residual = convolution(residual)
        return jax.nn.relu(self._shortcut(x) + self.last(residual))

    def _shortcut(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H2 W2 O"]:
        if len(self.projection):
            return self.projection[0](x)
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.padding))) if self.padding else x


def basic_group(
    inputs: int, width: int, depth: int, stride: int, *, init: Initialization, rngs: nnx.Rngs
) -> list[ResidualBlock]:
    """Returns `depth` basic blocks with parameter-free shortcuts, the first with `stride`."""
    first = ResidualBlock(inputs, width, stride, init=init, rngs=rngs)
    later = [ResidualBlock(width, width, init=init, rngs=rngs) for _ in range(depth - 1)]
    return [first, *later]


def resnet(spec: ResNetSpec, image_channels: int, *, rngs: nnx.Rngs) -> SingleScaleBackbone:
    """Builds a ResNet."""
    init = get_initialization(spec.initialization)
    small = spec.stem == "cifar"
    if small:
        stem = ConvBNReLU(image_channels, spec.channels, 3, init=init, rngs=rngs)
    else:
        stem = ImageNetStem(image_channels, spec.channels, init=init, rngs=rngs)
    blocks, widths, inputs = [], [], spec.channels
    for width, stride in _widths_and_strides(spec):
        style = {"bottleneck": spec.bottleneck, "projects": not small or spec.bottleneck}
        blocks.append(ResidualBlock(inputs, width, stride, **style, init=init, rngs=rngs))
        inputs = width * _BOTTLENECK_FACTOR if spec.bottleneck else width
        widths.append(inputs)
    return SingleScaleBackbone(
        stem, blocks, widths, exits=spec.exits, small_images=small, init=init, rngs=rngs
    )


def _widths_and_strides(spec: ResNetSpec) -> Iterator[tuple[int, int]]:
    """(width, stride) per block: every group but the first halves the resolution."""
    for group, depth in enumerate(spec.depths):
        width = spec.channels * 2**group
        first = (width, 2 if group else 1)
        yield from itertools.chain([first], itertools.repeat((width, 1), depth - 1))
