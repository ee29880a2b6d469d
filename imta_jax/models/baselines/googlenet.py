"""GoogLeNet (Inception v1, Szegedy et al., CVPR 2015) for ImageNet, as a backbone with one exit.

Widths and 5x5 convolutions follow the published Table 1. Every convolution is followed by batch
normalization, which replaces the published biases and local response normalization. The two
auxiliary classifiers, which helped to train without normalization, are left out.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.baselines.single_scale import ImageNetStem, SingleScaleBackbone, pool_by_two
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import ConvBNReLU


@dataclasses.dataclass(frozen=True)
class GoogLeNetSpec:
    """The fields of `config.model` for a GoogLeNet.

    Attributes:
      initialization: a name in `imta_jax.nn.initialization.INITIALIZATIONS`.
    """

    initialization: str = "he_normal"


# Per module: whether a max-pool precedes it; outputs of the 1x1 branch; of the reduction and the
# convolution of the 3x3 branch, then of the 5x5 branch; of the pooling branch.
_MODULES = (
    (True, 64, (96, 128), (16, 32), 32),
    (False, 128, (128, 192), (32, 96), 64),
    (True, 192, (96, 208), (16, 48), 64),
    (False, 160, (112, 224), (24, 64), 64),
    (False, 128, (128, 256), (24, 64), 64),
    (False, 112, (144, 288), (32, 64), 64),
    (False, 256, (160, 320), (32, 128), 128),
    (True, 256, (160, 320), (32, 128), 128),
    (False, 384, (192, 384), (48, 128), 128),
)


class Inception(nnx.Module):
    """Four branches, concatenated: 1x1, 3x3, 5x5, and 1x1 after a max-pool."""

    def __init__(
        self,
        inputs: int,
        pools: bool,
        one: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pooled: int,
        *,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.pools = pools
        self.outputs = one + three[1] + five[1] + pooled

        def convolution(i: int, o: int, kernel: int) -> ConvBNReLU:
            return ConvBNReLU(i, o, kernel, init=init, rngs=rngs)

        self.one = convolution(inputs, one, 1)
        self.three = nnx.Sequential(convolution(inputs, three[0], 1), convolution(*three, 3))
        self.five = nnx.Sequential(convolution(inputs, five[0], 1), convolution(*five, 5))
        self.pooled = convolution(inputs, pooled, 1)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N H2 W2 O"]:
        """Maps I channels to `outputs` channels O; a max-pool before halves H and W."""
        x = pool_by_two(x) if self.pools else x
        max_pooled = nnx.max_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        branches = (self.one(x), self.three(x), self.five(x), self.pooled(max_pooled))
        return jnp.concatenate(branches, axis=-1)


def googlenet(spec: GoogLeNetSpec, image_channels: int, *, rngs: nnx.Rngs) -> SingleScaleBackbone:
    """Builds a GoogLeNet."""
    init = get_initialization(spec.initialization)
    stem = nnx.Sequential(
        ImageNetStem(image_channels, 64, init=init, rngs=rngs),
        ConvBNReLU(64, 64, 1, init=init, rngs=rngs),
        ConvBNReLU(64, 192, 3, init=init, rngs=rngs),
    )
    modules, inputs = [], 192
    for sizes in _MODULES:
        modules.append(Inception(inputs, *sizes, init=init, rngs=rngs))
        inputs = modules[-1].outputs
    widths = [module.outputs for module in modules]
    return SingleScaleBackbone(stem, modules, widths, init=init, rngs=rngs)
