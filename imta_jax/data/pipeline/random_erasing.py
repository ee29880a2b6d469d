"""Random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896), within the compiled step.

A rectangle of an image is replaced by random pixels. The rectangle has 2% to 40% of the image's
area and an aspect ratio of 0.3 to 1 / 0.3, log-uniform. If ten attempts do not fit into the image,
it is unchanged.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt8

_ATTEMPTS = 10
_AREA = (0.02, 0.4)
_LOG_RATIO = math.log(1 / 0.3)


def random_erasing(
    key: jax.Array, images: UInt8[Array, "N H W C"], probability: float
) -> UInt8[Array, "N H W C"]:
    """Erases a rectangle of each image with a probability."""
    for_noise, for_choice, for_rectangle = jax.random.split(key, 3)
    count, height, width, _ = images.shape
    noise = jax.random.bits(for_noise, images.shape, jnp.uint8)
    chosen = jax.random.bernoulli(for_choice, probability, (count,))
    erased = _rectangles(for_rectangle, count, height, width) & chosen[:, None, None]
    return jnp.where(erased[..., None], noise, images)


def _rectangles(key: jax.Array, count: int, height: int, width: int) -> Bool[Array, "N H W"]:
    """Masks of random rectangles."""
    area, ratio, top, left = jax.random.uniform(key, (4, count, _ATTEMPTS))
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
    ratio = jnp.exp(_LOG_RATIO * (2 * ratio - 1))
    tall, wide = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    tall, wide, top, left, fits = (
        jnp.take_along_axis(x, first, axis=1) for x in (tall, wide, top, left, fits)
    )
    top, left = jnp.floor(top * (height - tall + 1)), jnp.floor(left * (width - wide + 1))
    y, x = jnp.arange(height)[None], jnp.arange(width)[None]
    rows = (y >= top) & (y < top + tall) & fits  # [N, H]
    columns = (x >= left) & (x < left + wide)  # [N, W]
    return rows[:, :, None] & columns[:, None, :]
