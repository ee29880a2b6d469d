"""Image folders: arrays of images of one size, and encoded images."""

import numpy as np
import pytest
from image_folders import NAMES, folder, load, paths
from PIL import Image
from sample_images import make_image, write

from imta_jax.data import EncodedImages
from imta_jax.data.pipeline import host_pipeline, tf_pipeline


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_png_folder_becomes_the_arrays_that_pillow_decodes(tmp_path, mode):
    root = folder(tmp_path, extension="png", size=(16, 24))
    for path in root.glob("*/*/*.png"):
        with Image.open(path) as image:
            converted = image.convert(mode)
        converted.save(path)
    dataset = load(root, preprocessing="padded_crop")
    assert dataset.image_shape == (16, 24, 3)
    test = dataset.splits["test"]
    assert isinstance(test.images, np.ndarray) and test.images.dtype == np.uint8
    files = [root / f"test/{name}/{i}.png" for name in NAMES for i in range(4)]
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    np.testing.assert_array_equal(test.images, expected)
    assert test.labels.tolist() == [k for k in range(3) for _ in range(4)]


def test_jpeg_folder_becomes_the_arrays_that_pillow_decodes(tmp_path):
    root = folder(tmp_path)
    dataset = load(root, preprocessing="padded_crop")
    files = [root / f"test/{name}/{i}.jpg" for name in NAMES for i in range(4)]
    expected = np.stack([np.asarray(Image.open(path)) for path in files]).astype(int)
    assert np.abs(dataset.splits["test"].images - expected).max() <= 1


def test_images_of_one_size_are_padded_like_arrays(tmp_path):
    dataset = load(folder(tmp_path, size=(21, 30)), preprocessing="padded_crop")
    assert dataset.image_shape == (24, 32, 3)
    assert not dataset.splits["train"].images[:, [0, -1, -2]].any()


def test_skipped_images_leave_no_gap_in_the_arrays(tmp_path):
    root = folder(tmp_path, extension="png", size=(16, 24))
    write(root, {"test/cat/2.png": b"text"})
    dataset = load(root, preprocessing="padded_crop", max_undecodable=0.2)
    test, files = dataset.splits["test"], sorted(root.glob("test/*/*.png"))
    del files[2]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(test.images, [np.asarray(Image.open(path)) for path in files])


def test_arrays_larger_than_the_memory_are_rejected(tmp_path, monkeypatch):
    root = folder(tmp_path)
    needed = 12 * 40 * 48 * 3
    monkeypatch.setattr(host_pipeline, "memory_bytes", lambda: needed)
    assert len(load(root, preprocessing="padded_crop").splits["test"]) == 12
    monkeypatch.setattr(host_pipeline, "memory_bytes", lambda: needed - 1)
    message = r"cat/0\.jpg.*40 x 48 pixels.* 12 images.*0\.0 GB.*preprocessing=random_area_crop"
    with pytest.raises(ValueError, match=message):
        load(root, preprocessing="padded_crop")


def test_images_too_large_to_train_on_without_a_resize_are_rejected(tmp_path, monkeypatch):
    root = folder(tmp_path)
    monkeypatch.setattr(host_pipeline, "_MAX_ARRAY_PIXELS", 40 * 48 - 1)
    with pytest.raises(ValueError, match=r"cat/0\.jpg.*40 x 48.*1,919.*random_area_crop"):
        load(root, preprocessing="padded_crop")


def test_images_are_decoded_in_chunks_of_limited_memory(tmp_path, monkeypatch):
    root = folder(tmp_path, extension="png")
    expected = load(root, preprocessing="padded_crop").splits["test"].images
    monkeypatch.setattr(tf_pipeline, "_CHUNK_BYTES", 3 * 40 * 48 * 3 - 1)
    actual = load(root, preprocessing="padded_crop").splits["test"].images
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_different_sizes_raise_with_padded_crop(tmp_path, split):
    root = write(folder(tmp_path), {f"{split}/dog/9.jpg": make_image(40, 50)})
    message = rf"{split}/dog/9\.jpg.*\[40, 50\].*{split}/cat/0\.jpg.*\[40, 48\].*random_area_crop"
    with pytest.raises(ValueError, match=message):
        load(root, preprocessing="padded_crop")


def test_splits_of_different_sizes_raise_with_padded_crop(tmp_path):
    root = folder(tmp_path, splits=("train",))
    folder(tmp_path, splits=("test",), size=(32, 32))
    with pytest.raises(ValueError, match=r"test images.*\(32, 32, 3\).*\(40, 48, 3\)"):
        load(root, preprocessing="padded_crop")


def test_images_stay_encoded_with_their_sizes_and_formats(tmp_path):
    root = folder(tmp_path)
    write(root, {"train/owl/p.png": make_image(50, 60), "train/owl/BIG.JPEG": make_image(70, 33)})
    # The format is that of the contents, not that of the name.
    make_image(20, 30).save(root / "train/owl/actually png.jpg", format="png")
    dataset = load(root)
    assert dataset.image_shape == (24, 24, 3)
    actual = {}
    for name in ("train", "validation"):
        split = dataset.splits[name]
        assert isinstance(split.images, EncodedImages)
        actual |= zip(
            paths(split), zip(split.sizes.tolist(), split.images.is_jpeg, strict=True), strict=True
        )
    assert len(actual) == 15
    for path, (size, is_jpeg) in actual.items():
        with Image.open(path) as image:
            assert size == [image.height, image.width] and is_jpeg == (image.format == "JPEG")
