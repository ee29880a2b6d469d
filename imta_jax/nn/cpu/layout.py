"""In which order the axes of a backbone's maps lie.

Images first is what the contracts speak of, what accelerators are given and what early exit needs,
which picks images out one by one. On a processor a step of training takes three quarters of the
time channels first, images last: a 1x1 convolution is then a product with rows of 65,536 numbers
instead of columns of 6, a neighbour's pixel lies one block of images away, and channels are joined
by laying blocks side by side (`docs/results/cpu.md`). It is set on the copy of a network that one
program computes with, so that nothing outside ever sees such maps.
"""

import enum

import jax
from flax import nnx


class Layout(enum.Enum):
    """The axes of a map: N images, H rows, W columns, C channels."""

    IMAGES_FIRST = "NHWC"
    CHANNELS_FIRST = "CHWN"

    @property
    def channels(self) -> int:
        """The axis of channels: the first or the last."""
        return 0 if self is Layout.CHANNELS_FIRST else -1

    def turned(self, maps: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] in this order, or such maps back in [N, H, W, C]."""
        return maps if self is Layout.IMAGES_FIRST else maps.transpose(3, 1, 2, 0)

    def per_channel(self, values: jax.Array) -> jax.Array:
        """Values [C] in a shape that broadcasts over maps of four axes."""
        return values.reshape([-1 if axis == "C" else 1 for axis in self.value])


def can_lay_out(backbone: nnx.Module) -> bool:
    """Whether a backbone can keep its maps in either layout: such have a `layout`."""
    return hasattr(backbone, "layout")


def lay_out(backbone: nnx.Module, layout: Layout) -> None:
    """Has a backbone keep its maps in a layout, if it is one that can.

    Args:
      backbone: a copy for use within one program.
      layout: channels first only for one device: rows of pixels of all images cannot be split.
    """
    if can_lay_out(backbone):
        backbone.set_attributes(layout=layout, raise_if_not_found=False)
