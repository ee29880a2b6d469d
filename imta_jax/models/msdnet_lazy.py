"""MSDNet that computes a map only once it is needed, for early exit.

An exit reads the coarsest map alone. Of the last layer before an exit it depends on the coarsest
scale, of the layer before on the two coarsest, and so on. Only later exits depend on the finer maps
of these layers. `LazyMSDNet` computes them at the start of the next stage, so an image that leaves
at the exit does not pay for them.
"""

from collections.abc import Sequence, Set
from typing import cast

from jaxtyping import Array, Float

from imta_jax.models.msdnet import MultiScaleLayer
from imta_jax.models.msdnet_fused import FusedMSDNet, Maps

# The input of a stage's first layer, then the output of each layer. None marks maps that are not
# yet computed, and inputs that are no longer needed.
Pending = tuple[Maps, ...]


class LazyMSDNet(FusedMSDNet):
    """The backbone contract with a state that still holds the unfinished part of a stage."""

    def stage(self, i: int, state: Maps | Pending) -> Pending:
        """Finishes stage i - 1 and runs of stage i what exit i depends on.

        Args:
          i: The stage, from 0.
          state: From `stem` if i is 0, else from `stage(i - 1, ...)`.
        """
        maps = cast(Maps, state) if i == 0 else self._finish(i - 1, cast(Pending, state))
        layers = self.network.stages[i]
        states: list[Maps] = [maps]
        for layer, scales in zip(layers, scales_of_exit(layers), strict=True):
            states.append(self.layer(layer, states[-1], scales))
        return pending_of(maps_to_keep(layers), states)

    def exit_features(self, i: int, state: Pending) -> Float[Array, "N F"]:
        """Pooled features of exit i, from the coarsest map."""
        return super().exit_features(i, state[-1])

    def _finish(self, i: int, pending: Pending) -> Maps:
        """All maps after stage i."""
        layers, maps = self.network.stages[i], pending[0]
        needed = scales_of_exit(layers)
        for layer, done, known in zip(layers, needed, pending[1:], strict=True):
            rest = self.layer(layer, maps, all_scales(layer) - done)
            maps = tuple(k if r is None else r for k, r in zip(known, rest, strict=True))
        return maps


def all_scales(layer: MultiScaleLayer) -> set[int]:
    """All output scales of a layer."""
    return set(range(len(layer.normal)))


def scales_of_exit(layers: Sequence[MultiScaleLayer]) -> list[set[int]]:
    """The output scales of each layer on which the exit after the last layer depends."""
    scales = [len(layer.normal) for layer in layers]
    return [
        set(range(max(0, count - back), count))
        for count, back in zip(scales, range(len(layers), 0, -1), strict=True)
    ]


def _read_by(layer: MultiScaleLayer, scales: Set[int]) -> set[int]:
    """Indices of the input maps from which a layer computes the output scales."""
    same = {scale + layer.dropped for scale in scales}
    finer = {scale + layer.dropped - 1 for scale in scales if scale >= layer.unstrided}
    return same | finer


def maps_to_keep(layers: Sequence[MultiScaleLayer]) -> list[set[int]]:
    """Indices of the input maps of each layer that later exits read."""
    return [
        _read_by(layer, all_scales(layer) - needed)
        for layer, needed in zip(layers, scales_of_exit(layers), strict=True)
    ]


def pending_of(kept: Sequence[Set[int]], states: Sequence[Maps]) -> Pending:
    """The maps before, between and after the layers; None for those that no later exit reads.

    Args:
      kept: of `maps_to_keep`, per layer.
      states: the input of the first layer, then the output of each layer.
    """
    pending = [
        tuple(x if n in indices else None for n, x in enumerate(maps))
        for indices, maps in zip(kept, states, strict=False)
    ]
    return (*pending, states[-1])
