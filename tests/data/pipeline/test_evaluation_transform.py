"""The exported evaluation transform gives the pixels of the evaluation pipeline."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sample_images import config, make_image, write

from imta_jax.data import (
    NO_AUGMENTATION,
    EvaluationTransform,
    PaddedCrop,
    RandomAreaCrop,
    evaluation_images,
    load_dataset,
)
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict

SIZES = [(90, 120), (121, 77), (40, 300), (20, 25), (33, 32), (500, 375), (7, 9)]


def arrays(tmp_path, shape, **changes):
    """The dataset of an .npz of random images, and its test images before preprocessing."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (count, *shape), np.uint8) for count in (12, 6))
    labels = {"train_labels": np.arange(12) % 2, "test_labels": np.arange(6) % 2}
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test, **labels)
    return load_dataset(config(tmp_path / "a.npz", **changes)), test


def evaluated(dataset):
    split = dataset.splits["test"]
    return evaluation_images(split, dataset.preprocessing, np.arange(len(split)))


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (28, 28, 3), (32, 32, 3), (50, 50, 3), (30, 45, 1), (9, 17, 3)]
)
def test_padding_of_arrays_equals_evaluation(tmp_path, shape):
    dataset, images = arrays(tmp_path, shape)
    transform = dataset.evaluation_transform
    assert transform.source_size == shape[:2] and transform.image_shape == dataset.image_shape
    actual = np.stack([transform.apply(image) for image in images])
    np.testing.assert_array_equal(actual, evaluated(dataset))
    np.testing.assert_array_equal(transform.pad(images), evaluated(dataset))


@pytest.mark.parametrize("shape", [(28, 28, 1), (50, 40, 3), (200, 333, 3)])
def test_resize_of_arrays_equals_evaluation(tmp_path, shape):
    changes = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 37}
    dataset, images = arrays(tmp_path, shape, **changes)
    actual = np.stack([dataset.evaluation_transform.apply(image) for image in images])
    np.testing.assert_array_equal(actual, evaluated(dataset))


@pytest.mark.parametrize("sizes", [(224, 256), (32, 40), (64, 64)])
def test_resize_of_lossless_files_equals_evaluation(tmp_path, sizes):
    files = {f"train/a/{i}.png": make_image(50, 60, i) for i in range(6)}
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in SIZES]
    files |= {f"test/a/{i}.png": Image.fromarray(pixels) for i, pixels in enumerate(noise)}
    files["test/a/9.png"] = make_image(60, 80, mode="L")
    changes = {"preprocessing": "random_area_crop", "image_size": sizes[0], "resize": sizes[1]}
    dataset = load_dataset(config(write(tmp_path, files), **changes))
    noise.append(np.asarray(files["test/a/9.png"].convert("RGB")))
    actual = np.stack([dataset.evaluation_transform.apply(pixels) for pixels in noise])
    np.testing.assert_array_equal(actual, evaluated(dataset))


def test_only_images_of_the_size_of_the_network_are_accepted_and_unchanged():
    transform = PaddedCrop(4, True, source_size=(28, 28)).evaluation_transform(
        (32, 32, 1), (0.5,), (0.5,)
    )
    image = np.ones((32, 32, 1), np.uint8)
    np.testing.assert_array_equal(transform.apply(image), image)
    with pytest.raises(ValueError, match=r"30 x 28.*28 x 28.*32 x 32"):
        transform.apply(np.ones((30, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"source_size.*\(16, 16\).*\(28, 28\)"):
        PaddedCrop(4, True, source_size=(28, 28)).evaluation_transform((16, 16, 1), (0,), (1,))


TRANSFORMS = [
    NO_AUGMENTATION.evaluation_transform((32, 32, 3), (0.1, 0.2, 0.3), (1, 1, 1)),
    PaddedCrop(4, True, source_size=(27, 28)).evaluation_transform((32, 32, 1), (0.5,), (0.5,)),
    RandomAreaCrop(224, 256, 0.08, True).evaluation_transform((224, 224, 3), (0,) * 3, (1,) * 3),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_description_is_unchanged_by_json(transform):
    fields = json.loads(json.dumps(transform.to_dict()))
    assert transform_from_dict(fields, transform.image_shape, version=2) == transform
    exif = replace(transform, exif_orientation="apply")
    assert transform_from_dict(exif.to_dict(), transform.image_shape, version=2) == exif


def test_description_of_version_1_has_no_padding():
    fields = {"resize": None, "mean": [0.5], "std": [0.5], "description": "No resizing."}
    transform = transform_from_dict(fields, (32, 32, 1), version=1)
    assert transform == EvaluationTransform((32, 32, 1), (0.5,), (0.5,), padding=None)
    with pytest.raises(ValueError, match=r"28 x 28.*32 x 32.*version 1.*export"):
        transform.apply(np.zeros((28, 28, 1), np.uint8))
    resized = transform_from_dict(fields | {"resize": 40}, (32, 32, 1), version=1)
    assert resized.resize == 40


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resize": -5}, "^resize.* 32.*-5"),
        ({"resize": 31}, "^resize.* 32.*31"),
        ({"resize": True}, "^resize.*True"),
        ({"resize": 40}, r"^padding.*resize.*40.*\[\[2, 2\], \[2, 2\]\]"),
        ({"padding": [[2, 2]]}, r"^padding.*\[\[2, 2\]\]"),
        ({"padding": [[-2, 2], [2, 2]]}, r"^padding.*\[\[-2"),
        ({"padding": [[16, 16], [2, 2]]}, r"^padding.*\[\[16"),
        ({"padding": [[3, 1], [2, 3]]}, r"^source_size.*\[28, 27\].*\[28, 28\]"),
        ({"padding": None}, "^padding.*None"),
        ({"color": "rgb"}, "^color.*'gray'.*'rgb'"),
        ({"crop": [30, 30]}, r"^crop.*None.*\[30, 30\]"),
        ({"resize_filter": "nearest"}, "^resize_filter.*'nearest'"),
        ({"exif_orientation": "guess"}, "^exif_orientation.*'guess'"),
        ({"std": [float("inf")]}, r"^std.*inf"),
        ({"std": [0]}, r"^std.*\[0\]"),
        ({"mean": [float("nan")]}, r"^mean.*nan"),
        ({"mean": [0.1, 0.2]}, r"^mean.*\b1\b.*\[0\.1, 0\.2\]"),
        ({"mean": "x"}, "^mean.*'x'"),
    ],
)
def test_invalid_field_is_rejected_by_name(changes, message):
    fields = TRANSFORMS[1].to_dict() | {"padding": [[2, 2], [2, 2]], "source_size": [28, 28]}
    with pytest.raises(ValueError, match=message):
        transform_from_dict(fields | changes, (32, 32, 1), version=2)


def test_missing_field_is_rejected_by_name():
    fields = TRANSFORMS[1].to_dict()
    del fields["padding"]
    with pytest.raises(ValueError, match="padding"):
        transform_from_dict(fields, (32, 32, 1), version=2)
