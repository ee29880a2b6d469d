"""The words every room shares: what a batch is, and the letters that name array axes.

Axis letters, used in comments and docstrings across the package: E exits (always leading), N
examples of a batch or split, H W C image height, width and channels, K classes, S scales, B
budgets.
"""

from typing import NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """Examples as they travel from the input pipeline to a step; a JAX pytree.

    Attributes:
      images: uint8 [N, H, W, C], not normalised: a quarter of the bytes of float32 on the way to
        the device, where the step normalises them.
      labels: int32 [N], class of each image, from 0.
      mask: bool [N]; False marks a row that only pads the batch and must not be counted.
      index: int32 [N], position of the example in its split; -1 for padding.
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array
    index: np.ndarray | jax.Array
