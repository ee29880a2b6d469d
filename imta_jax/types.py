"""The batch type, and the axis letters of array shapes.

Axis letters in comments and docstrings: E exits (always the first axis), N examples of a batch or
split, H W C image height, width and channels, K classes, S scales, B budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

# One number per image channel, such as the mean or standard deviation of the pixels.
PerChannel = Sequence[float] | np.ndarray
# The class of each image, from 0, or the probability of each class (after mixup or cutmix).
Labels = Int[Array, " N"] | Float[Array, "N K"]


class Batch(NamedTuple):
    """A batch of examples from the input pipeline; a JAX pytree.

    Attributes:
      images: not normalized. The step normalizes on the device, so that a batch has a quarter of
        the bytes of float32.
      labels: class of each image, from 0. Within a step with mixup or cutmix, the probability of
        each class.
      mask: False marks padding that must not be counted.
      index: position of the example in its split; -1 for padding.
    """

    images: UInt8[Array | np.ndarray, "N H W C"]
    labels: Int32[Array | np.ndarray, " N"] | Float32[Array | np.ndarray, "N K"]
    mask: Bool[Array | np.ndarray, " N"]
    index: Int32[Array | np.ndarray, " N"]
