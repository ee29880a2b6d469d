"""The operations of RandAugment against Pillow, for each operation and several magnitudes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from imta_jax.data.pipeline.randaugment import OPERATIONS, apply_operations, randaugment

SIZE = 24
# Fraction of pixels that may differ, and by how much. Coordinates of affine transforms are float32,
# so that a pixel on the border between two may be the other one.
AFFINE = {"shear_x", "shear_y", "rotate"}
FLOATS = {"brightness", "color", "contrast", "sharpness", "autocontrast"}


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    smooth = np.linspace(20, 200, SIZE)[:, None, None] + np.linspace(0, 40, SIZE)[None, :, None]
    noise = generator.integers(0, 15, (3, SIZE, SIZE, 3))
    return np.clip(smooth[None] + noise + [0, 8, -9], 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def apply():
    """One program for all operations: `operation` and `sign` are arguments."""
    return jax.jit(apply_operations, static_argnums=2)


def with_pillow(name, image, magnitude, sign):
    """The operation with the ranges of torchvision's RandAugment."""
    level = magnitude / 30 * sign
    pil_image = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    height, width = pil_image.height, pil_image.width

    def transform(*matrix):
        return pil_image.transform(pil_image.size, Image.Transform.AFFINE, matrix)

    enhance = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](pil_image).enhance(1 + 0.9 * level)
    return {
        "identity": lambda: pil_image,
        "shear_x": lambda: transform(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": lambda: transform(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": lambda: transform(1, 0, -int(150 / 331 * width * level), 0, 1, 0),
        "translate_y": lambda: transform(1, 0, 0, 0, 1, -int(150 / 331 * height * level)),
        "rotate": lambda: pil_image.rotate(30 * level),
        "posterize": lambda: ImageOps.posterize(pil_image, 8 - round(4 * magnitude / 30)),
        "solarize": lambda: ImageOps.solarize(pil_image, 255 * (1 - magnitude / 30)),
        "autocontrast": lambda: ImageOps.autocontrast(pil_image),
        "equalize": lambda: ImageOps.equalize(pil_image),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [7, 30])
def test_operations_equal_pillow(images, apply, magnitude, channels):
    images = images[..., :channels]
    for name in OPERATIONS:
        if channels == 1 and name == "color":
            continue  # Pillow has no color of gray images; here they are unchanged.
        for sign in (1.0, -1.0):
            operation = np.full(len(images), OPERATIONS.index(name))
            actual = apply(images, operation, magnitude, np.full(len(images), sign, np.float32))
            expected = np.stack(
                [np.asarray(with_pillow(name, image, magnitude, sign)) for image in images]
            ).reshape(images.shape)
            difference = np.abs(np.asarray(actual).astype(int) - expected)
            if name in AFFINE:
                assert (difference > 0).mean() <= 0.01, name
            else:
                assert difference.max() <= (name in FLOATS), name


def test_operations_are_chosen_per_image(images, apply):
    operation = np.array([OPERATIONS.index(n) for n in ("identity", "solarize", "rotate")])
    sign = np.ones(3, np.float32)
    together = np.asarray(apply(images, operation, 15, sign))
    for i in range(3):
        alone = apply(images, np.full(3, operation[i]), 15, sign)
        np.testing.assert_array_equal(together[i], alone[i])
    np.testing.assert_array_equal(together[0], images[0])


def test_color_does_not_change_gray_images(images, apply):
    operation = np.full(len(images), OPERATIONS.index("color"))
    gray = images[..., :1]
    np.testing.assert_array_equal(apply(gray, operation, 20, np.ones(3, np.float32)), gray)


def test_magnitude_zero_changes_nothing_except_by_tables(images, apply):
    for name in OPERATIONS[: OPERATIONS.index("solarize")]:
        operation = np.full(len(images), OPERATIONS.index(name))
        actual = apply(images, operation, 0, np.ones(3, np.float32))
        np.testing.assert_array_equal(actual, images, err_msg=name)


def test_an_image_of_one_value_is_not_stretched(apply):
    flat = np.full((3, SIZE, SIZE, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize"):
        operation = np.full(3, OPERATIONS.index(name))
        np.testing.assert_array_equal(apply(flat, operation, 9, np.ones(3, np.float32)), flat)


def test_all_operations_are_drawn_about_equally_often():
    """Of one image, repeated: the number of distinct results bounds the number of operations."""
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    count = 1400
    draw = jax.jit(
        lambda key: randaugment(key, jnp.repeat(image, count, 0), operations=1, magnitude=20)
    )
    actual = np.asarray(draw(jax.random.key(0))).reshape(count, -1)
    share = np.unique(actual, axis=0, return_counts=True)[1] / count
    # Directions of an operation differ; the identity also has the share of a blend of factor 1.
    assert 20 <= len(share) <= 24
    assert share.max() < 3 / len(OPERATIONS)
    assert share.min() > 0.25 / len(OPERATIONS)
    assert math.isclose(share.sum(), 1)
