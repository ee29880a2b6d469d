"""TFDS datasets that are read into arrays: the pixels that the runner reads from the same files."""

import io

import numpy as np
import pytest
import tfds_datasets
from encoded_samples import encoded
from PIL import Image
from sample_images import config, make_image

from imta_jax.data import dataset_info, load_dataset
from imta_jax.data.decoding.pillow_decoder import decode_image

FILES = [
    encoded(make_image(32, 32, seed, cells=9), "PNG" if seed % 3 == 2 else "JPEG")
    for seed in range(24)
]


def prepare(folder, files, channels=3):
    """A version of a dataset without a declared encoding: it stores files unchanged."""
    examples = {
        split: [{"image": io.BytesIO(file), "label": i % 2} for i, file in enumerate(files)]
        for split in ("train", "test")
    }
    return tfds_datasets.prepare(folder, "Files", examples, shape=(32, 32, channels), num_classes=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("prepared"), FILES)


def test_stored_files_have_the_pixels_that_the_runner_reads(prepared):
    test = load_dataset(config(prepared)).splits["test"].images
    expected = {decode_image(contents).tobytes() for contents in FILES}
    assert {np.ascontiguousarray(image).tobytes() for image in test} == expected


def test_orientations_of_stored_files_are_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(make_image(32, 32), "JPEG", exif=exif)
    folder = prepare(tmp_path, [turned] * 8)
    test = load_dataset(config(folder, exif_orientation="apply")).splits["test"].images
    np.testing.assert_array_equal(test[0], decode_image(turned, apply_exif=True))
    assert (test[0] != decode_image(turned)).any()


RGB_PNGS = [encoded(make_image(32, 32, seed), "PNG") for seed in range(24)]
GRAY = [
    encoded(make_image(32, 32, seed, "L"), "PNG" if seed % 3 == 2 else "JPEG") for seed in range(24)
]
GRAY_PNGS = [encoded(make_image(32, 32, seed, "L"), "PNG") for seed in range(24)]
GIF = encoded(make_image(32, 32).convert("P"), "GIF")


@pytest.mark.parametrize(
    ("files", "channels", "bad"),
    [
        (FILES, 3, FILES[0][:200]),
        (RGB_PNGS, 3, RGB_PNGS[0][:-30]),
        (RGB_PNGS, 3, GIF),
        (GRAY, 1, GRAY[0][:200] + b"\xff\xd9"),
        (GRAY_PNGS, 1, GIF),
    ],
    ids=["JPEG", "PNG", "GIF", "gray JPEG", "gray GIF"],
)
def test_stored_files_that_are_rejected_are_left_out_by_name(
    tmp_path, caplog, files, channels, bad
):
    folder = prepare(tmp_path, [bad, *files[1:]], channels)
    with pytest.raises(ValueError, match=r"1 of 24 images.*max_undecodable"):
        load_dataset(config(folder))
    dataset = load_dataset(config(folder, max_undecodable=0.1))
    actual = {image.tobytes() for image in dataset.splits["test"].images}
    assert actual == {decode_image(file, channels=channels).tobytes() for file in files[1:]}
    assert dataset.skipped["test"] == 1 and "record at byte" in caplog.text


def test_color_files_of_a_gray_dataset_have_the_pixels_that_the_runner_reads(tmp_path):
    palette = encoded(make_image(32, 32, 1).convert("P"), "PNG")
    files = [palette, *FILES[1:], encoded(make_image(32, 32, 0, "CMYK"), "JPEG")]
    test = load_dataset(config(prepare(tmp_path, files, 1))).splits["test"].images
    actual = {image.tobytes() for image in test}
    assert actual == {decode_image(file, channels=1).tobytes() for file in files}


def test_description_of_images_of_different_sizes_names_the_fix():
    with pytest.raises(ValueError, match=r"tf_flowers.*\(None, None, 3\).*random_area_crop"):
        dataset_info(config("tf_flowers"))
    fields = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 36}
    assert dataset_info(config("tf_flowers", **fields)).image_shape == (32, 32, 3)
