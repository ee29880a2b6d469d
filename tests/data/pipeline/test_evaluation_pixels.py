"""Evaluation crops of image files against Pillow."""

import os

import numpy as np
import pytest
from random_area_crops import difference, load, noise, opened
from sample_images import make_image, pillow_evaluation_crop, write

from imta_jax.data import (
    RandomAreaCrop,
    evaluation_images,
)
from imta_jax.inference.image_files import read_image

# Height and width; evaluation resizes the shorter side to 256 and takes 224 pixels.
SIZES = [
    (256, 256),
    (224, 224),
    (255, 300),
    (500, 375),
    (333, 257),
    (60, 90),  # smaller
    (17, 23),
    (1, 1),
    (20, 900),  # panoramas
    (1100, 30),
    (1, 500),
    (1500, 2100),  # large
]


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory):
    files = {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    for i, (height, width) in enumerate(SIZES):
        for ending in ("jpg", "png"):
            # Detailed images, if they have enough pixels for more than noise.
            cells = max(2, min(height, width) // 12)
            files[f"test/a/{height}x{width}.{ending}"] = make_image(height, width, i, cells=cells)
    root = write(tmp_path_factory.mktemp("sizes"), files)
    return load(root).splits["test"]


def test_evaluation_equals_resize_and_center_crop_of_pillow(many_sizes):
    images = evaluation_images(
        many_sizes, RandomAreaCrop(224, 256, 0.08, True), np.arange(len(many_sizes))
    )
    assert len(images) == 2 * len(SIZES)
    for i, image in enumerate(images):
        expected = pillow_evaluation_crop(opened(many_sizes, i))
        assert difference(image, expected).max() <= 1, many_sizes.images.name(i)


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (31, 36), (32, 37), (1, 1), (64, 200)])
def test_evaluation_equals_pillow_at_other_sizes(many_sizes, size, resize):
    sampled = np.arange(0, len(many_sizes), 3)
    images = evaluation_images(many_sizes, RandomAreaCrop(size, resize, 0.08, True), sampled)
    for i, image in zip(sampled, images, strict=True):
        expected = pillow_evaluation_crop(opened(many_sizes, i), resize, size)
        assert difference(image, expected).max() <= 1, many_sizes.images.name(i)


@pytest.mark.parametrize(("size", "resize"), [(24, 100), (64, 64)])
def test_inference_has_the_pixels_of_evaluation(many_sizes, size, resize):
    crop = RandomAreaCrop(size, resize, 0.08, True)
    transform = crop.evaluation_transform((size, size, 3), (0.5,) * 3, (0.2,) * 3)
    every = np.arange(len(many_sizes))
    images = evaluation_images(many_sizes, crop, every)
    for i, image in zip(every, images, strict=True):
        path = os.fsdecode(many_sizes.images.path(i))
        np.testing.assert_array_equal(read_image(path, transform).pixels, image, err_msg=path)


def test_evaluation_windows_are_those_of_torchvision():
    sizes = np.array(SIZES)
    for size, window in zip(
        sizes, RandomAreaCrop(224, 256, 0.08, True).eval_windows(sizes), strict=True
    ):
        resized = [256 if side == min(size) else int(256 * side / min(size)) for side in size]
        corner = np.array([round((side - 224) / 2) for side in resized])
        scale = size / resized
        np.testing.assert_allclose(window, [*(corner * scale), *(224 * scale)], rtol=1e-5)


def test_jpegs_of_every_kind_decode_as_in_pillow(tmp_path):
    variants = [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}]
    variants += [{"quality": 30}, {"restart_marker_blocks": 3}, {"optimize": True}]
    root = write(
        tmp_path, {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    )
    (root / "test/a").mkdir(parents=True)
    for i, options in enumerate(variants):
        for k, (height, width) in enumerate([(97, 61), (130, 203)]):
            path = root / f"test/a/{i}{k}.jpg"
            noise(height, width, i).save(path, **{"quality": 80, **options})
    test = load(root).splits["test"]
    for i, image in enumerate(
        evaluation_images(test, RandomAreaCrop(64, 70, 0.1, True), np.arange(14))
    ):
        assert difference(image, pillow_evaluation_crop(opened(test, i), 70, 64)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "ending", "levels"),
    [
        ("L", "jpg", 1),
        ("CMYK", "jpg", 3),
        *((mode, "png", 1) for mode in ("L", "P", "1", "RGBA", "LA")),
    ],
)
def test_images_of_other_modes_become_rgb(tmp_path, mode, ending, levels):
    root = write(
        tmp_path, {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    )
    for i, size in enumerate([(60, 90), (121, 83)]):
        image = make_image(*size, i) if mode in ("P", "1") else make_image(*size, i, mode)
        write(root, {f"test/a/{i}.{ending}": image.convert(mode)})
    dataset = load(root)
    assert dataset.image_shape == (224, 224, 3)
    test = dataset.splits["test"]
    assert opened(test, 0).mode == mode
    for i, image in enumerate(evaluation_images(test, dataset.preprocessing, np.arange(2))):
        assert image.shape == (224, 224, 3)
        assert difference(image, pillow_evaluation_crop(opened(test, i))).max() <= levels
