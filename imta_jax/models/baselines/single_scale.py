"""What networks of one resolution at a time share: the opening, the exits, and their contract.

ResNet, DenseNet and GoogLeNet are a row of blocks, each mapping one feature map to the next. With
exits after some of the blocks such a row is a multi-exit network; with none but the last it is the
plain network that the paper compares with (Sec. 4, "Compared Models").
"""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from imta_jax.models.msdnet import ExitFeatures
from imta_jax.models.plan import CIFAR_HEAD_WIDTH
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.initialization import Initialization
from imta_jax.nn.layers import ConvBNReLU

State = tuple[jax.Array, ...]


def pool_by_two(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2, padded by one: [N, H, W, C] to [N, ceil(H/2), ceil(W/2), C]."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


class ImageNetOpening(nnx.Module):
    """7x7 convolution at stride 2 and a 3x3 max-pool at stride 2, for photographs."""

    def __init__(self, inputs: int, outputs: int, *, init: Initialization, rngs: nnx.Rngs):
        self.first = ConvBNReLU(inputs, outputs, 7, 2, init=init, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [N, H, W, inputs] to [N, H/4, W/4, outputs], rounding up."""
        return pool_by_two(self.first(images))


class NormReLU(nnx.Module):
    """Batch normalisation and ReLU, for blocks that hand on what is not yet activated."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, width] to the same shape."""
        return self.norm(x, relu=True)


class SingleScaleBackbone(nnx.Module):
    """The backbone contract (see `classifier.Backbone`) on a row of blocks.

    An exit before the last one computes what MSDNet's exits do, two strided convolutions and
    pooling, 128 wide for small images and as wide as the map for photographs; the last one pools
    only, as the plain networks do.

    Attributes:
      num_exits: k.
      feature_widths: channels of the pooled features of each exit.
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
        """Puts blocks and exits together.

        Args:
          opening: maps images to the first block's map.
          blocks: map to map.
          widths: channels after each block.
          exits: numbers, from 1, of the blocks that an exit follows, the last block left out.
          small_images: whether exits are 128 wide.
          preactivated: whether blocks start, rather than end, with normalisation and ReLU.
          init: starting values of the exits.
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

    def stem(self, images: jax.Array) -> State:
        """Maps images [N, H, W, C] to the first state, which is one map."""
        return (self.opening(images),)

    def stage(self, i: int, state: State) -> State:
        """Runs the blocks before exit i (from 0)."""
        (x,) = state
        for block in self.stages[i]:
            x = block(x)
        return (x,)

    def exit_features(self, i: int, state: State) -> jax.Array:
        """Pooled features [N, feature_widths[i]] of exit i."""
        (x,) = state
        if len(self.activations):
            x = self.activations[i](x)
        return x.mean(axis=(1, 2)) if i == self.num_exits - 1 else self.exits[i](x)
