"""MSDNet for early exit, with weights that are folded, joined and transposed once.

A map is computed only once an exit reads it (`msdnet_dependencies`), so the state between stages
holds unfinished layers. The modules hold new variables, prepared for inference.
"""

from collections.abc import Sequence, Set
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.models.msdnet import MSDNet, MultiScaleLayer
from imta_jax.models.msdnet_dependencies import (
    Maps,
    Pending,
    all_scales,
    maps_to_keep,
    pending_of,
    scales_of_exit,
)
from imta_jax.models.msdnet_fused import readers_of_maps
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.cpu.no_inline import no_inline
from imta_jax.nn.packed import PackedConvNorm


class PackedLayer(nnx.Module):
    """A layer at some of its output scales.

    Args:
      layer: holds the weights.
      scales: output scales to compute, 0 being the finest.
      layout: order of the axes of all maps.
      dtype: dtype of the maps.
    """

    def __init__(self, layer: MultiScaleLayer, scales: Set[int], layout: Layout, dtype: Any):
        self.layout, self.dropped = layout, layer.dropped
        self.scales, self.num_scales = tuple(sorted(scales)), len(layer.normal)
        readers = [r for r in enumerate(readers_of_maps(layer, scales)) if r[1]]
        self.inputs = tuple(index for index, _ in readers)
        # Per input map: (whether the branch is strided, its output scale) of its readers.
        self.outputs = tuple(tuple((r.strided, r.scale) for r in of_map) for _, of_map in readers)
        self.reduce = nnx.List(
            [
                PackedConvNorm([r.branch.reduce for r in of_map], layout, dtype)
                for _, of_map in readers
            ]
        )
        self.expand = nnx.List(
            [
                nnx.List([PackedConvNorm([r.branch.expand], layout, dtype) for r in of_map])
                for _, of_map in readers
            ]
        )
        self.transition = nnx.List(
            [
                PackedConvNorm([layer.transition[scale]], layout, dtype)
                for scale in self.scales
                if layer.transition
            ]
        )

    def __call__(self, state: Maps) -> Maps:
        """One map per output scale, None where it is not computed."""
        branches: dict[tuple[bool, int], jax.Array] = {}
        for index, names, reduce, expand in zip(
            self.inputs, self.outputs, self.reduce, self.expand, strict=True
        ):
            reduced = reduce(cast(jax.Array, state[index]))
            for name, convolution, y in zip(names, expand, reduced, strict=True):
                (branches[name],) = convolution(y)
        outputs: list[jax.Array | None] = [None] * self.num_scales
        for i, scale in enumerate(self.scales):
            parts = (
                state[scale + self.dropped],
                branches.get((True, scale)),
                branches[False, scale],
            )
            y = jnp.concatenate([p for p in parts if p is not None], axis=self.layout.channel_axis)
            if self.transition:
                (y,) = self.transition[i](y)
            # XLA does not fuse into NHWC convolutions: they store their input anyway.
            outputs[scale] = no_inline(y) if self.layout is Layout.CHWN else y
        return tuple(outputs)


class PackedMSDNet(nnx.Module):
    """The backbone contract (`classifier.Backbone`) for inference with early exit.

    Args:
      network: its weights are copied; running statistics are used.
      layout: order of the axes of all maps.
      dtype: dtype of the maps.

    Attributes:
      num_exits: number of exits.
      feature_widths: channels of the pooled features, per exit.
      channel_axis: axis of the maps' channels.
    """

    def __init__(self, network: MSDNet, layout: Layout, dtype: Any):
        self.layout, self.channel_axis = layout, layout.channel_axis
        self.num_exits, self.feature_widths = network.num_exits, network.feature_widths
        self.pools = network.first.pools
        stem = [network.first.first, *network.first.coarser]
        self.first = nnx.List([PackedConvNorm([unit], layout, dtype) for unit in stem])
        stages = network.stages
        needed = [scales_of_exit(layers) for layers in stages]
        rest = [
            [all_scales(layer) - done for layer, done in zip(layers, of_stage, strict=True)]
            for layers, of_stage in zip(stages, needed, strict=True)
        ]
        self.kept = tuple(tuple(map(frozenset, maps_to_keep(layers))) for layers in stages)
        self.for_exit = nnx.List(
            [_pack_stage(*stage, layout, dtype) for stage in zip(stages, needed, strict=True)]
        )
        # The last stage has no later exit.
        self.for_later = nnx.List(
            [
                _pack_stage(*stage, layout, dtype)
                for stage in zip(stages[:-1], rest[:-1], strict=True)
            ]
        )
        self.exits = nnx.List(
            [
                nnx.List([PackedConvNorm([unit], layout, dtype) for unit in exit_.convolutions])
                for exit_ in network.exits
            ]
        )

    def stem(self, images: Float[Array, "N H W C"]) -> Maps:
        """Maps images to the first state, in the layout."""
        (x,) = self.first[0](self.layout.transpose(images))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        state = [x]
        for convolution in self.first[1:]:
            state += convolution(state[-1])
        return tuple(state)

    def stage(self, i: int, state: Maps | Pending) -> Pending:
        """Finishes stage i - 1 and runs of stage i what exit i depends on."""
        maps = cast(Maps, state) if i == 0 else self._finish(i - 1, cast(Pending, state))
        states: list[Maps] = [maps]
        for layer in self.for_exit[i]:
            states.append(layer(states[-1]))
        return pending_of(self.kept[i], states)

    def exit_features(self, i: int, state: Pending) -> Float[Array, "N F"]:
        """Pooled features of exit i, from the coarsest map."""
        x = cast(jax.Array, state[-1][-1])
        for convolution in self.exits[i]:
            (x,) = convolution(x)
        pooled = x.mean(axis=(1, 2))
        return pooled.T if self.layout is Layout.CHWN else pooled

    def _finish(self, i: int, pending: Pending) -> Maps:
        """All maps after stage i."""
        maps = pending[0]
        for layer, known in zip(self.for_later[i], pending[1:], strict=True):
            rest = layer(maps)
            maps = tuple(k if r is None else r for k, r in zip(known, rest, strict=True))
        return maps


def _pack_stage(
    layers: Sequence[MultiScaleLayer], scales: Sequence[Set[int]], layout: Layout, dtype: Any
) -> nnx.List:
    """The layers of a stage, each at some of its output scales."""
    return nnx.List(
        [
            PackedLayer(layer, of_layer, layout, dtype)
            for layer, of_layer in zip(layers, scales, strict=True)
        ]
    )
