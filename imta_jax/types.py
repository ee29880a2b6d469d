"""The batch type, and the axis letters of array shapes.

Axis letters in comments and docstrings: E exits (always the first axis), N examples of a batch or
split, H W C image height, width and channels, K classes, S scales, B budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

# One number per image channel, such as the mean or standard deviation of the pixels.
PerChannel = Sequence[float] | np.ndarray
# The class of each image, from 0, or the probability of each class (after mixup or cutmix).
Labels = Int[Array, " N"] | Float[Array, "N K"]


class Batch(NamedTuple):
    """A batch of examples from the input pipeline; a JAX pytree.

    Attributes:
      images: uint8 [N, H, W, C], not normalized. The step normalizes on the device, so that a batch
        has a quarter of the bytes of float32.
      labels: int32 [N], class of each image, from 0. Within a step with mixup or cutmix, float32
        [N, K], the probability of each class.
      mask: bool [N]; False marks padding that must not be counted.
      index: int32 [N], position of the example in its split; -1 for padding.
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array
    index: np.ndarray | jax.Array
