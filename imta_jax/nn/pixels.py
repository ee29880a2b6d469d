"""Pixel normalization, from uint8 images to the floats that networks read."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.types import PerChannel


def normalize(
    images: jax.Array | np.ndarray, mean: PerChannel, std: PerChannel
) -> Float[Array, "N H W C"]:
    """Returns (pixel / 255 - mean) / std; runs on the device, inside the step.

    Args:
      images: uint8 [N, H, W, C].
      mean: one value per channel, of pixels scaled to 0..1.
      std: one value per channel, above 0, of pixels scaled to 0..1.

    Raises:
      ValueError: the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise InputError(f"expected uint8 pixels, 0 to 255; found {images.dtype}")
    shape = (1, 1, 1, len(mean))
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32).reshape(shape)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return jnp.asarray(images, jnp.float32) * scale + shift.reshape(shape)
