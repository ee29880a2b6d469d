"""The backbone of ResNet, DenseNet and GoogLeNet: a sequence of blocks with exits.

Each block maps one feature map to the next. With exits after some of the blocks this is a
multi-exit network; with the last exit alone it is the plain network that the paper compares with
(Sec. 4, "Compared Models").
"""

import itertools
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.msdnet import ExitFeatures
from imta_jax.models.plan import CIFAR_HEAD_WIDTH
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.initialization import Initialization
from imta_jax.nn.layers import ConvBNReLU

State = tuple[Float[Array, "N _ _ _"], ...]


def pool_by_two(x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
    """3x3 max-pool at stride 2, padded by one; halves H and W, rounding up."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


class ImageNetStem(nnx.Module):
    """7x7 convolution at stride 2 and 3x3 max-pool at stride 2, for ImageNet."""

    def __init__(self, inputs: int, outputs: int, *, init: Initialization, rngs: nnx.Rngs):
        self.first = ConvBNReLU(inputs, outputs, 7, 2, init=init, rngs=rngs)

    def __call__(self, images: Float[Array, "N H W I"]) -> Float[Array, "N H4 W4 O"]:
        """Divides H and W by 4, rounding up."""
        return pool_by_two(self.first(images))


class NormReLU(nnx.Module):
    """Batch normalization and ReLU, for blocks whose output is not activated."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(width, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Normalizes and activates a map of `width` channels."""
        return self.norm(x, relu=True)


class SingleScaleBackbone(nnx.Module):
    """The backbone contract (`classifier.Backbone`) on a sequence of blocks.

    All exits but the last have the features of MSDNet's exits: two strided convolutions and
    pooling, with 128 channels for small images and the channels of the map for ImageNet. The last
    exit only pools, as in the plain networks.

    Attributes:
      num_exits: number of exits.
      feature_widths: channels of the pooled features, per exit.
    """

    def __init__(
        self,
        opening: nnx.Module,
        blocks: Sequence[nnx.Module],
        widths: Sequence[int],
        *,
        exits: Sequence[int] = (),
        small_images: bool = False,
        preactivated: bool = False,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        """Combines blocks and exits.

        Args:
          opening: maps images to the first block's input.
          blocks: each maps a feature map to the next.
          widths: channels after each block.
          exits: numbers, from 1, of the blocks that an exit follows, without the last block.
          small_images: whether exits have 128 channels.
          preactivated: whether blocks start, rather than end, with normalization and ReLU.
          init: initialization of the exits.
          rngs: the `params` stream is used.
        """
        self.opening = opening
        bounds = itertools.pairwise((0, *exits, len(blocks)))
        self.stages = nnx.List([nnx.List(list(blocks[a:b])) for a, b in bounds])
        self.num_exits = len(self.stages)
        read = [widths[number - 1] for number in (*exits, len(blocks))]
        exit_widths = [CIFAR_HEAD_WIDTH if small_images else width for width in read[:-1]]
        self.feature_widths = (*exit_widths, read[-1])
        self.activations = nnx.List(
            [NormReLU(width, rngs=rngs) for width in read] if preactivated else []
        )
        self.exits = nnx.List(
            [
                ExitFeatures(i, w, init=init, rngs=rngs)
                for i, w in zip(read, exit_widths, strict=False)
            ]
        )

    def stem(self, images: Float[Array, "N H W C"]) -> State:
        """Maps images to the first state, a single map."""
        return (self.opening(images),)

    def stage(self, i: int, state: State) -> State:
        """Runs the blocks before exit i (from 0)."""
        (x,) = state
        for block in self.stages[i]:
            x = block(x)
        return (x,)

    def exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        """Pooled features of exit i, with F = feature_widths[i]."""
        (x,) = state
        if len(self.activations):
            x = self.activations[i](x)
        return x.mean(axis=(1, 2)) if i == self.num_exits - 1 else self.exits[i](x)
