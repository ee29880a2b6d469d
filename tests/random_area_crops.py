"""Image files with random-area crops, read for the tests of the pipelines."""

import numpy as np
from PIL import Image
from sample_images import config

from imta_jax.data import (
    RandomAreaCrop,
    load_dataset,
)

CROP = RandomAreaCrop(size=32, resize=36, min_area=0.08, flip=True)


def load(root, **changes):
    fields = {"preprocessing": "random_area_crop", "validation_examples": 1, **changes}
    return load_dataset(config(root, **fields))


def opened(split, index):
    with Image.open(split.images.name(index)) as image:
        image.load()
        return image


def difference(image, other):
    return np.abs(image.astype(int) - other)


def noise(height, width, seed):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def stacked(batches):
    return [np.concatenate(values) for values in zip(*batches, strict=True)]
