"""MSDNet with fused operations, over the variables of a `msdnet.MSDNet`.

The 1x1 convolutions that read the same map become one, with their batch normalizations. Frozen
batch normalization may be folded into the convolutions. On one CPU maps may be CHWN. See
`nn.fused` and `nn.cpu` for each of these; the function computed is that of `MSDNet`.
"""

from collections.abc import Sequence, Set
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.msdnet import Bottleneck, MSDNet, MultiScaleLayer
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.cpu.no_inline import no_inline
from imta_jax.nn.fused import fused_conv_norm
from imta_jax.nn.layers import ConvNorm

# One map per live scale in the network's layout, finest first.
Maps = tuple[jax.Array, ...]


class Reader(NamedTuple):
    """A branch that reads an input map of a layer.

    Attributes:
      strided: whether it is the strided branch.
      scale: its output scale.
      branch: the branch.
    """

    strided: bool
    scale: int
    branch: Bottleneck


def readers_of_maps(layer: MultiScaleLayer, scales: Set[int]) -> list[list[Reader]]:
    """The branches that read each input map, for some output scales of a layer."""
    readers_by_map = []
    for scale in range(-layer.dropped, len(layer.normal)):
        readers = []
        if scale in scales:
            readers.append(Reader(False, scale, layer.normal[scale]))
        if scale + 1 in scales and scale + 1 >= layer.unstrided:
            branch = layer.strided[scale + 1 - layer.unstrided]
            readers.append(Reader(True, scale + 1, branch))
        readers_by_map.append(readers)
    return readers_by_map


class FusedMSDNet(nnx.Module):
    """The backbone contract (`classifier.Backbone`) on the variables of an MSDNet.

    Attributes:
      network: holds the variables and the mode (training or inference).
      layout: order of the axes of all maps.
      fold_batch_norm: whether batch normalization with running statistics is folded.
      num_exits: number of exits.
      feature_widths: channels of the pooled features, per exit.
      channel_axis: axis of the maps' channels.
    """

    def __init__(self, network: MSDNet, layout: Layout, fold_batch_norm: bool):
        self.network, self.layout, self.fold_batch_norm = network, layout, fold_batch_norm
        self.num_exits, self.feature_widths = network.num_exits, network.feature_widths
        self.channel_axis = layout.channel_axis

    def stem(self, images: Float[Array, "N H W C"]) -> Maps:
        """Maps images to the first state, in the layout."""
        stem = self.network.first
        x = self._conv_norm(stem.first, self.layout.transpose(images))
        if stem.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        state = [x]
        for convolution in stem.coarser:
            state.append(self._conv_norm(convolution, state[-1]))
        return tuple(state)

    def stage(self, i: int, state: Maps) -> Maps:
        """Runs the layers before exit i (from 0)."""
        for layer in self.layers(i):
            state = self.apply_layer(layer, state)
        return state

    def layers(self, i: int) -> Sequence[MultiScaleLayer]:
        """The layers before exit i (from 0)."""
        return self.network.stages[i]

    def exit_features(self, i: int, state: Maps) -> Float[Array, "N F"]:
        """Pooled features of exit i, from the coarsest map."""
        x = state[-1]
        for convolution in self.network.exits[i].convolutions:
            x = self._conv_norm(convolution, x)
        pooled = x.mean(axis=(1, 2))
        return pooled.T if self.layout is Layout.CHWN else pooled

    def apply_layer(self, layer: MultiScaleLayer, state: Maps) -> Maps:
        """Runs a layer."""
        strided, normal = self._branches(layer, state)
        outputs = []
        for scale in range(len(layer.normal)):
            parts = (state[scale + layer.dropped], strided.get(scale), normal[scale])
            parts = [y for y in parts if y is not None]
            y = jnp.concatenate(parts, axis=self.layout.channel_axis)
            if layer.transition:
                y = self._conv_norm(layer.transition[scale], y)
            # XLA does not fuse into NHWC convolutions: they store their input anyway.
            outputs.append(no_inline(y) if self.layout is Layout.CHWN else y)
        return tuple(outputs)

    def _branches(
        self, layer: MultiScaleLayer, state: Maps
    ) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
        """Outputs of the strided and of the normal branches, by output scale.

        A map has up to two readers, whose 1x1 convolutions are computed jointly: the normal branch
        of its scale and the strided branch of the next coarser one.
        """
        outputs: dict[bool, dict[int, jax.Array]] = {True: {}, False: {}}
        scales = set(range(len(layer.normal)))
        for x, readers in zip(state, readers_of_maps(layer, scales), strict=True):
            reduced = self._joint_conv_norm([reader.branch.reduce for reader in readers], x)
            for reader, y in zip(readers, reduced, strict=True):
                outputs[reader.strided][reader.scale] = self._conv_norm(reader.branch.expand, y)
        return outputs[True], outputs[False]

    def _conv_norm(self, unit: ConvNorm, x: jax.Array) -> jax.Array:
        return self._joint_conv_norm([unit], x)[0]

    def _joint_conv_norm(self, units: list[ConvNorm], x: jax.Array) -> list[jax.Array]:
        return fused_conv_norm(units, x, layout=self.layout, fold_batch_norm=self.fold_batch_norm)
