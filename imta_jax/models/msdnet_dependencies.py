"""The maps that each exit of an MSDNet reads. Early exit computes a map for its first reader.

An exit reads the coarsest map alone. Of the last layer before an exit it depends on the coarsest
scale, of the layer before on the two coarsest, and so on. Only later exits depend on the finer maps
of these layers. `PackedMSDNet` computes them at the start of the next stage, so an image that
leaves at the exit does not compute them.
"""

from collections.abc import Sequence, Set

import jax

from imta_jax.models.msdnet import MultiScaleLayer

# One map per live scale, finest first; None where it was not computed.
Maps = tuple[jax.Array | None, ...]
# The input of a stage's first layer, then the output of each layer. None marks maps that are not
# yet computed, and inputs that are no longer needed.
Pending = tuple[Maps, ...]


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
      kept: return value of `maps_to_keep`, per layer.
      states: the input of the first layer, then the output of each layer.
    """
    pending = [
        tuple(x if n in indices else None for n, x in enumerate(maps))
        for indices, maps in zip(kept, states, strict=False)
    ]
    return (*pending, states[-1])
