"""Detached feature halves (DFS, Gong et al., ECCV 2024, arXiv 2407.13986).

An exit and all later exits read the output of a stage, and their gradients conflict. Here every
channel of a map is trained by one side only: the losses of later exits reach the first m channels,
and the gradient of the other channels stops on the way to the next stage. The forward pass is
unchanged, and the loss is the sum of the exits' losses (Eq. 1).

Of a map x with C channels and m = round((1 - fraction) * C), with sg for stopped gradients:

    input of the next stage = [x[:m], sg(x[m:])]
    input of the exit       = x                     (the authors' code)
                            = [sg(x[:m]), x[m:]]    (the paper)

The authors detach the coarsest map only. After the last stage nothing is detached.
"""

import dataclasses
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imta_jax import options
from imta_jax.runtime.config_fields import Section, number

DETACHED_MAPS = get_args(options.DetachedMaps)


@dataclasses.dataclass(frozen=True)
class FeatureDetachment(Section):
    """Which gradients of a stage's output are stopped.

    Attributes:
      maps: feature maps that are detached: one of `DETACHED_MAPS`.
      fraction: fraction of a map's channels that later exits do not train.
      from_exit: whether the exit trains only these channels (the paper) or all (authors' code).

    Raises:
      InputError: an unknown name, or a fraction that is not between 0 and 1.
    """

    section: ClassVar[str] = "FeatureDetachment"

    maps: options.DetachedMaps = "off"
    fraction: float = number(0.5, above=0, below=1)
    from_exit: bool = False

    def __call__(
        self,
        for_exit: tuple[Any, ...],
        for_next_stage: tuple[Any, ...],
        *,
        channel_axis: int = -1,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Stops gradients between a stage and its two readers.

        Args:
          for_exit: the exit's input: feature maps, finest scale first.
          for_next_stage: the next stage's input: the same maps.
          channel_axis: axis of the maps' channels.

        Returns:
          (input of the exit, input of the next stage), with unchanged values.
        """
        if self.maps == "off":
            return for_exit, for_next_stage
        kept = {"axis": channel_axis, "fraction": self.fraction, "stopped": "last"}
        for_next_stage = self._on_maps(for_next_stage, **kept)
        if self.from_exit:
            for_exit = self._on_maps(for_exit, **{**kept, "stopped": "first"})
        return for_exit, for_next_stage

    def _on_maps(self, state: tuple[Any, ...], **arguments: Any) -> tuple[Any, ...]:
        first = len(state) - 1 if self.maps == "coarsest" else 0
        detached = jax.tree.map(
            lambda x: stop_channels(x, **arguments) if _has_channels(x) else x, state[first:]
        )
        return (*state[:first], *detached)


def _has_channels(x: Any) -> bool:
    """Whether an array of a state is a feature map, and not, say, a number per image."""
    return x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating)


def stop_channels(
    x: Float[Array, "..."], *, fraction: float = 0.5, stopped: str = "last", axis: int = -1
) -> Float[Array, "..."]:
    """The identity, with the gradient of some channels stopped.

    Args:
      x: a feature map with C channels.
      fraction: fraction of the channels after the first m = round((1 - fraction) * C).
      stopped: "last" for the channels from m on, "first" for the first m.
      axis: axis of the channels.
    """
    m = round((1 - fraction) * x.shape[axis])
    first, last = jnp.split(x, [m], axis=axis)
    if stopped == "last":
        last = jax.lax.stop_gradient(last)
    else:
        first = jax.lax.stop_gradient(first)
    # XLA removes the concatenation of adjacent slices of one array.
    return jnp.concatenate([first, last], axis=axis)
