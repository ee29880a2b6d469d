"""Image operations of RandAugment in JAX, with the results of Pillow.

All operations take and return uint8 images [N, H, W, C] with C = 1 or 3, and have a parameter per
image. They fall into three groups, so that a step computes three of them for every image instead of
one per name: an affine transform, a blend with a degenerate image, and a table of 256 values.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

_LEVELS = 256
# Pillow's weights of red, green and blue in a gray value, times 2**16.
_GRAY_WEIGHTS = (19595, 38470, 7471)


def affine(images: UInt8[Array, "N H W C"], matrix: Float[Array, "N 6"]) -> UInt8[Array, "N H W C"]:
    """Transforms images with the nearest pixel; pixels from outside are 0.

    Args:
      images: uint8.
      matrix: (a, b, c, d, e, f) of each image, as in Pillow's `Image.transform`: the result at
        (x, y) is the image at (a x + b y + c, d x + e y + f), with pixel centers at 1/2.
    """
    count, height, width, channels = images.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    a, b, c, d, e, f = (matrix[:, i, None, None] for i in range(6))
    column = jnp.floor(a * x[None] + b * y[None] + c).astype(jnp.int32)  # [N, H, W]
    row = jnp.floor(d * x[None] + e * y[None] + f).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    position = jnp.where(inside, row * width + column, 0).reshape(count, -1, 1)
    pixels = images.reshape(count, height * width, channels)
    taken = jnp.take_along_axis(pixels, position, axis=1).reshape(images.shape)
    return jnp.where(inside[..., None], taken, jnp.zeros((), images.dtype))


def blend(
    images: UInt8[Array, "N H W C"],
    degenerate: UInt8[Array, "N H W C"],
    factor: Float[Array, " N"],
) -> UInt8[Array, "N H W C"]:
    """Pillow's `Image.blend`: degenerate + factor * (images - degenerate), truncated."""
    start = degenerate.astype(jnp.float32)
    change = images.astype(jnp.float32) - start
    blended = start + factor[:, None, None, None] * change
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def gray(images: UInt8[Array, "N H W C"]) -> UInt8[Array, "N H W 1"]:
    """Gray values (ITU-R 601-2); images of one channel are unchanged."""
    if images.shape[-1] == 1:
        return images
    weights = jnp.array(_GRAY_WEIGHTS)[None, None, None]
    total = (images.astype(jnp.int32) * weights).sum(axis=-1, keepdims=True)
    return ((total + (1 << 15)) >> 16).astype(jnp.uint8)


def mean_gray(images: UInt8[Array, "N H W C"]) -> UInt8[Array, "N H W C"]:
    """Images of one value: the rounded mean gray value. Blending changes the contrast."""
    mean = jnp.floor(gray(images).astype(jnp.float32).mean(axis=(1, 2, 3), keepdims=True) + 0.5)
    return jnp.broadcast_to(mean.astype(jnp.uint8), images.shape)


def smooth(images: UInt8[Array, "N H W C"]) -> UInt8[Array, "N H W C"]:
    """Pillow's SMOOTH filter: the 3 x 3 mean with weight 5 at the center; borders are unchanged."""
    if min(images.shape[1:3]) < 3:
        return images
    wide = images.astype(jnp.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (2 * (box + 4 * wide[:, 1:-1, 1:-1]) + 13) // 26  # Divided by 13 and rounded.
    return images.at[:, 1:-1, 1:-1].set(inner.astype(jnp.uint8))


def look_up(
    images: UInt8[Array, "N H W C"], table: UInt8[Array, "N C 256"]
) -> UInt8[Array, "N H W C"]:
    """Replaces each value by the entry of its image's and channel's table."""
    count, channels = images.shape[0], images.shape[-1]
    pixels = images.reshape(count, -1, channels).swapaxes(1, 2).astype(jnp.int32)
    taken = jnp.take_along_axis(table, pixels, axis=2)
    return taken.swapaxes(1, 2).reshape(images.shape)


def histograms(images: UInt8[Array, "N H W C"]) -> Int[Array, "N C 256"]:
    """Number of pixels of each value, per image and channel."""
    pixels = images.reshape(images.shape[0], -1, images.shape[-1]).swapaxes(1, 2)
    count = jax.vmap(jax.vmap(lambda x: jnp.bincount(x, length=_LEVELS)))
    return count(pixels.astype(jnp.int32))


def equalize_table(histogram: Int[Array, "N C 256"]) -> UInt8[Array, "N C 256"]:
    """Table that makes the histogram uniform, as in Pillow's `ImageOps.equalize`."""
    total = histogram.sum(axis=-1, keepdims=True)
    last = _LEVELS - 1 - jnp.argmax((histogram > 0)[..., ::-1], axis=-1)[..., None]
    step = (total - jnp.take_along_axis(histogram, last, axis=-1)) // (_LEVELS - 1)
    before = jnp.cumsum(histogram, axis=-1) - histogram
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), _LEVELS - 1)
    # Few pixels, or a single value: Pillow leaves the channel unchanged.
    return jnp.where(step == 0, _identity(), table).astype(jnp.uint8)


def autocontrast_table(histogram: Int[Array, "N C 256"]) -> UInt8[Array, "N C 256"]:
    """Table that maps the darkest value to 0 and the lightest to 255."""
    present = histogram > 0
    low = jnp.argmax(present, axis=-1)[..., None]
    high = _LEVELS - 1 - jnp.argmax(present[..., ::-1], axis=-1)[..., None]
    table = jnp.clip((_identity() - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, table, _identity()).astype(jnp.uint8)


def posterize_table(bits: Int[Array, " N"]) -> UInt8[Array, "N 1 256"]:
    """Table that keeps the `bits` highest bits."""
    kept = (255 << (8 - bits)) & 255
    return (_identity() & kept[:, None, None]).astype(jnp.uint8)


def solarize_table(threshold: Float[Array, " N"]) -> UInt8[Array, "N 1 256"]:
    """Table that inverts values of at least `threshold`."""
    values = _identity()
    return jnp.where(values < threshold[:, None, None], values, 255 - values).astype(jnp.uint8)


def _identity() -> Int[Array, "1 1 256"]:
    return jnp.arange(_LEVELS)[None, None]
