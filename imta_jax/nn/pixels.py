"""From the bytes that travel to the floats that networks read."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Maps pixels to (pixel / 255 - mean) / std; runs on the device, inside the step.

    Args:
      images: uint8 [N, H, W, C].
      mean: one value per channel, of pixels scaled to 0..1.
      std: likewise, above 0.

    Returns:
      float32 [N, H, W, C].

    Raises:
      ValueError: images that are not bytes.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"expected uint8 pixels, 0 to 255; found {images.dtype}")
    shape = (1, 1, 1, len(mean))
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32).reshape(shape)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale + shift.reshape(shape)
