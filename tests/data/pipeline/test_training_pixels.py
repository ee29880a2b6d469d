"""Training crops of image files against Pillow, and channel statistics."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image
from random_area_crops import CROP, difference, load, noise, opened
from sample_images import make_image, pillow_evaluation_crop, write

from imta_jax.data import (
    RandomAreaCrop,
    epoch_plan,
    eval_batches,
    train_batches,
)
from imta_jax.data.pipeline import decoded_part
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.host_pipeline import HostPipeline, decode_all, resized_batches


def test_training_pixels_are_those_of_the_window_in_the_plan(image_files):
    split, seen = image_files.splits["train"], set()
    for epoch in range(4):
        plan = epoch_plan(CROP, split.sizes, seed=0, epoch=epoch)
        for batch in train_batches(split, CROP, batch_size=7, seed=0, epoch=epoch):
            np.testing.assert_array_equal(batch.labels, split.labels[batch.index])
            for image, i in zip(batch.images, batch.index, strict=True):
                top, left, height, width = plan.window[i].astype(int)
                shown = opened(split, i).crop((left, top, left + width, top + height))
                expected = np.asarray(shown.resize((32, 32), Image.Resampling.BILINEAR))
                expected = expected[:, ::-1] if plan.flip[i] else expected
                ratio = 2 ** min(3, int(math.log2(max(1, min(height, width) / 32))))
                seen.add((ratio if split.images.is_jpeg[i] else 0, bool(plan.flip[i])))
                assert difference(image, expected).mean() < 8, (
                    split.images.name(i),
                    plan.window[i],
                )
    assert seen == {(ratio, flip) for ratio in (0, 1, 2, 4, 8) for flip in (False, True)}


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_extra_decoded_columns_do_not_change_the_pixels(tmp_path, monkeypatch, subsampling):
    for i in range(16):
        path = tmp_path / f"{('train', 'test')[i % 2]}/{i // 2 % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = make_image(150 + 30 * i, 170 + 25 * i, i, cells=40)
        image.save(path, quality=90, subsampling=subsampling)
    parts = {"validation_split": "test", "test_split": "hold_out", "test_examples": 2}
    dataset = load(tmp_path, image_size=32, resize=36, **parts)
    train, validation = dataset.splits["train"], dataset.splits["validation"]

    def pixels():
        epochs = [train_batches(train, CROP, batch_size=6, seed=0, epoch=e) for e in range(8)]
        batches = itertools.chain(*epochs, eval_batches(validation, CROP, batch_size=8))
        return np.concatenate([batch.images for batch in batches])

    expected = pixels()
    monkeypatch.setattr(decoded_part, "_BLOCK", 1)
    np.testing.assert_array_equal(pixels(), expected)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_windows_at_full_resolution_have_the_pixels_of_the_whole_image(tmp_path, subsampling):
    for i in range(8):
        path = tmp_path / f"{('train', 'test')[i % 2]}/{i // 2 % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(80, 90, i).save(path, quality=80, subsampling=subsampling)
    parts = {"validation_split": "test", "test_split": "hold_out", "test_examples": 2}
    images = load(tmp_path, image_size=32, resize=36, **parts).splits["validation"].images
    whole = decode_all(images[:1])[0]
    lefts = [*range(35), 57, 58]
    window = np.array([(left % 49, left, 32, 32) for left in lefts], np.float32)
    indices = BatchIndices(np.zeros(len(lefts), np.int64), window, np.zeros(len(lefts), bool))
    ((actual, _),) = resized_batches(
        images, indices, len(lefts), HostPipeline(), size=32, exact=False
    )
    for image, (top, left, _, _) in zip(actual, window.astype(int), strict=True):
        np.testing.assert_array_equal(image, whole[top : top + 32, left : left + 32])


def test_flip_only_mirrors_the_crop(image_files):
    split = image_files.splits["train"]
    unflipped = RandomAreaCrop(CROP.size, CROP.resize, CROP.min_area, flip=False)
    arguments = {"batch_size": len(split), "seed": 2, "epoch": 1}
    (flipped,), (straight,) = (
        list(train_batches(split, crop, **arguments)) for crop in (CROP, unflipped)
    )
    flip = epoch_plan(CROP, split.sizes, seed=2, epoch=1).flip[flipped.index]
    assert 0.2 < flip.mean() < 0.8
    np.testing.assert_array_equal(flipped.index, straight.index)
    expected = np.where(flip[:, None, None, None], straight.images[:, :, ::-1], straight.images)
    np.testing.assert_array_equal(flipped.images, expected)


def test_statistics_are_of_evaluation_crops_of_training_images(tmp_path):
    names = [f"{split}/a/{i}.png" for split in ("train", "test") for i in range(6)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    dataset = load(root, image_size=32, resize=36)
    train = dataset.splits["train"]
    pixels = np.stack([pillow_evaluation_crop(opened(train, i), 36, 32) for i in range(5)]) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=2e-3)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=2e-3)
    assert dataset.statistics_source.startswith("computed from 5 ")
