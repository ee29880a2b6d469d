"""The EXIF orientation, ignored or applied in training, evaluation and inference."""

import numpy as np
import pytest
from encoded_samples import encoded
from PIL import Image, ImageOps
from sample_images import config, make_image, pillow_evaluation_crop, write

from imta_jax.data import RandomAreaCrop, epoch_plan, evaluation_images, load_dataset, train_batches
from imta_jax.inference.image_files import read_image

ORIENTATIONS = range(1, 9)
RESIZED = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 37}


def rotated(kind, orientation, size=(90, 130)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(make_image(*size, seed=orientation, cells=6), kind, exif=exif, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    files = {
        f"{split}/{kind}/{orientation}.{kind.lower()}": rotated(kind, orientation)
        for split in ("train", "test")
        for kind in ("JPEG", "PNG")
        for orientation in ORIENTATIONS
    }
    return write(tmp_path_factory.mktemp("rotated"), files)


def upright(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


def test_rotated_images_are_counted_and_logged(root, caplog):
    dataset = load_dataset(config(root, **RESIZED))
    expected = dict.fromkeys(range(2, 9), 2)
    for split in ("train", "test"):
        assert dataset.findings.splits[split].orientations == expected
    assert f"14 of 16 images of {root}/test" in caplog.text
    assert (dataset.splits["test"].sizes == (90, 130)).all()


def test_orientation_is_applied_in_evaluation_and_inference(root, caplog):
    dataset = load_dataset(config(root, **RESIZED, exif_orientation="apply"))
    split = dataset.splits["test"]
    images = evaluation_images(split, dataset.preprocessing, np.arange(len(split)))
    transform = dataset.evaluation_transform
    assert transform.exif_orientation == "apply" and "EXIF" not in caplog.text
    for i, image in enumerate(images):
        path = split.images.name(i)
        shown = upright(path)
        assert split.sizes[i].tolist() == [shown.height, shown.width]
        expected = pillow_evaluation_crop(shown, 37, 32).astype(int)
        assert np.abs(image - expected).max() <= 2, path
        decoded = read_image(path, transform)
        np.testing.assert_array_equal(decoded.pixels, image)
        assert decoded.size == (shown.height, shown.width)


def test_orientation_is_applied_in_training(root):
    crop = RandomAreaCrop(32, 37, 0.3, True)
    split = load_dataset(config(root, **RESIZED, exif_orientation="apply")).splits["train"]
    for epoch in range(2):
        plan = epoch_plan(crop, split.sizes, seed=0, epoch=epoch)
        for batch in train_batches(split, crop, batch_size=4, seed=0, epoch=epoch):
            for image, i in zip(batch.images, batch.index, strict=True):
                top, left, height, width = plan.window[i].astype(int)
                shown = upright(split.images.name(i)).crop((left, top, left + width, top + height))
                expected = np.asarray(shown.resize((32, 32), Image.Resampling.BILINEAR))
                expected = expected[:, ::-1] if plan.flip[i] else expected
                assert np.abs(image.astype(int) - expected).mean() < 8


def test_orientation_is_applied_to_arrays(tmp_path):
    files = {
        f"{split}/a/{orientation}.png": rotated("PNG", orientation, (24, 24))
        for split in ("train", "test")
        for orientation in ORIENTATIONS
    }
    root = write(tmp_path, files)
    dataset = load_dataset(config(root, exif_orientation="apply"))
    split = dataset.splits["test"]
    expected = [np.asarray(upright(path)) for path in sorted((root / "test/a").iterdir())]
    np.testing.assert_array_equal(split.images, expected)
    for path, image in zip(sorted((root / "test/a").iterdir()), split.images, strict=True):
        np.testing.assert_array_equal(read_image(path, dataset.evaluation_transform).pixels, image)


def test_arrays_of_rotated_rectangles_have_the_displayed_size(tmp_path):
    files = {
        f"{split}/a/{i}.png": rotated("PNG", orientation, (24, 16) if orientation > 4 else (16, 24))
        for split in ("train", "test")
        for i, orientation in enumerate((1, 3, 6, 8, 1, 5))
    }
    dataset = load_dataset(config(write(tmp_path, files), exif_orientation="apply"))
    assert dataset.splits["test"].images.shape == (6, 16, 24, 3)
    for i, path in enumerate(sorted((tmp_path / "test/a").iterdir())):
        np.testing.assert_array_equal(dataset.splits["test"].images[i], np.asarray(upright(path)))
