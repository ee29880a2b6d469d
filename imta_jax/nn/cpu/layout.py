"""The order of a feature map's axes: NHWC, or CHWN on one CPU.

Images are NHWC, and accelerators compute in NHWC. On a CPU, a training step in CHWN takes three
quarters of the time (`docs/results/cpu.md`): a 1x1 convolution multiplies rows of 65,536 elements
instead of 6, neighboring pixels lie one batch apart, and channels are concatenated by copying
contiguous blocks. CHWN does not suit several devices, which split the batch.
"""

import enum

import jax


class Layout(enum.Enum):
    """Axes of a feature map: N images, H rows, W columns, C channels."""

    NHWC = "NHWC"
    CHWN = "CHWN"

    @property
    def channel_axis(self) -> int:
        """The axis of the channels: first or last."""
        return 0 if self is Layout.CHWN else -1

    def transpose(self, maps: jax.Array) -> jax.Array:
        """Brings NHWC maps to this layout, or maps in this layout to NHWC."""
        return maps if self is Layout.NHWC else maps.transpose(3, 1, 2, 0)

    def per_channel(self, values: jax.Array) -> jax.Array:
        """Reshapes values [C] to broadcast over maps in this layout."""
        return values.reshape([-1 if axis == "C" else 1 for axis in self.value])
