"""RandAugment (Cubuk et al., NeurIPS 2020, arXiv 1909.13719) on batches, within the compiled step.

Each image gets some operations in turn, each drawn uniformly from `OPERATIONS`. All have the same
magnitude, in the units of torchvision's `RandAugment`: 0 to 30.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from imta_jax.data.pipeline.image_operations import (
    affine,
    autocontrast_table,
    blend,
    equalize_table,
    gray,
    histograms,
    look_up,
    mean_gray,
    posterize_table,
    smooth,
    solarize_table,
)

OPERATIONS = (
    "identity",
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
LARGEST_MAGNITUDE = 30
# At the largest magnitude.
_SHEAR, _TRANSLATION, _DEGREES, _BLEND = 0.3, 150 / 331, 30.0, 0.9


def randaugment(
    key: jax.Array, images: UInt8[Array, "N H W C"], *, operations: int, magnitude: float
) -> UInt8[Array, "N H W C"]:
    """Applies random operations to each image.

    Args:
      key: a PRNG key.
      images: images with 1 or 3 channels.
      operations: number of operations per image.
      magnitude: strength of the operations, 0 to `LARGEST_MAGNITUDE`.
    """
    for operation_key in jax.random.split(key, operations):
        choice_key, sign_key = jax.random.split(operation_key)
        operation = jax.random.randint(choice_key, images.shape[:1], 0, len(OPERATIONS))
        negative = jax.random.bernoulli(sign_key, 0.5, images.shape[:1])
        images = apply_operations(images, operation, magnitude, 1.0 - 2.0 * negative)
    return images


def apply_operations(
    images: UInt8[Array, "N H W C"],
    operation: Int[Array, " N"],
    magnitude: float,
    sign: Float[Array, " N"],
) -> UInt8[Array, "N H W C"]:
    """Applies one operation to each image.

    Args:
      images: images with 1 or 3 channels.
      operation: indices into `OPERATIONS`.
      magnitude: see `randaugment`.
      sign: 1 or -1; the direction of shears, translations and rotations, and whether a blend
        strengthens (1) or weakens (-1). Other operations have none.
    """
    level = magnitude / LARGEST_MAGNITUDE
    # At most one of the three changes an image.
    images = affine(images, _matrices(images.shape, operation, level * sign))
    factor = 1 + _BLEND * level * sign
    is_blend = (operation >= _index("brightness")) & (operation <= _index("sharpness"))
    images = blend(images, _degenerate(images, operation), jnp.where(is_blend, factor, 1.0))
    return look_up(images, _tables(images, operation, level))


def _index(name: str) -> int:
    return OPERATIONS.index(name)


def _chosen(operation: Int[Array, " N"], by_name: Mapping[str, Array], default: Array) -> Array:
    """Per image the value of its operation; axis 0 of the values is N."""
    shape = (-1, *(1,) * (default.ndim - 1))
    for name, value in by_name.items():
        default = jnp.where((operation == _index(name)).reshape(shape), value, default)
    return default


def _matrices(
    shape: tuple[int, ...], operation: Int[Array, " N"], level: Float[Array, " N"]
) -> Float[Array, "N 6"]:
    """The matrix of `affine` for each image; the identity for other operations."""
    _, height, width, _ = shape
    zero, one = jnp.zeros_like(level), jnp.ones_like(level)
    shear, angle = _SHEAR * level, -math.radians(_DEGREES) * level
    right, down = (jnp.trunc(_TRANSLATION * level * side) for side in (width, height))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2  # the fixed point of the rotation
    rows = {
        "shear_x": (one, shear, zero, zero, one, zero),
        "shear_y": (one, zero, zero, shear, one, zero),
        "translate_x": (one, zero, -right, zero, one, zero),
        "translate_y": (one, zero, zero, zero, one, -down),
        "rotate": (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
    }
    identity = jnp.stack([one, zero, zero, zero, one, zero], axis=1)
    return _chosen(operation, {n: jnp.stack(row, axis=1) for n, row in rows.items()}, identity)


def _degenerate(
    images: UInt8[Array, "N H W C"], operation: Int[Array, " N"]
) -> UInt8[Array, "N H W C"]:
    """What an image is blended with; black for other operations."""
    by_name = {"color": gray(images), "contrast": mean_gray(images), "sharpness": smooth(images)}
    return _chosen(operation, by_name, jnp.zeros_like(images))


def _tables(
    images: UInt8[Array, "N H W C"], operation: Int[Array, " N"], level: float
) -> UInt8[Array, "N C 256"]:
    """The table of `look_up` for each image; the identity for other operations."""
    count, channels = images.shape[0], images.shape[-1]
    histogram = histograms(images)
    bits = jnp.full(count, 8 - round(4 * level))
    by_name = {
        "posterize": posterize_table(bits),
        "solarize": solarize_table(jnp.full(count, 255 * (1 - level), jnp.float32)),
        "autocontrast": autocontrast_table(histogram),
        "equalize": equalize_table(histogram),
    }
    identity = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8), (count, channels, 256))
    return _chosen(operation, by_name, identity)
