"""TFDS datasets that are read into arrays: the pixels that the runner reads from the same files."""

import io

import numpy as np
import pytest
import tfds_datasets
from encoded_samples import encoded
from sample_images import config, make_image

from imta_jax.data import dataset_info, load_dataset
from imta_jax.data.decoding.pillow_decoder import decode_image

FILES = [
    encoded(make_image(32, 32, seed, cells=9), "PNG" if seed % 3 == 2 else "JPEG")
    for seed in range(24)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A version of a dataset without a declared encoding: it stores files unchanged."""
    examples = {
        split: [{"image": io.BytesIO(file), "label": i % 2} for i, file in enumerate(FILES)]
        for split in ("train", "test")
    }
    folder = tmp_path_factory.mktemp("prepared")
    return tfds_datasets.prepare(folder, "Files", examples, shape=(32, 32, 3), num_classes=2)


def test_stored_files_have_the_pixels_that_the_runner_reads(prepared):
    test = load_dataset(config(prepared)).splits["test"].images
    expected = {decode_image(contents).tobytes() for contents in FILES}
    assert {np.ascontiguousarray(image).tobytes() for image in test} == expected


def test_orientations_that_would_be_ignored_are_rejected(prepared):
    with pytest.raises(ValueError, match=r"exif_orientation=apply.*files.*random_area_crop"):
        load_dataset(config(prepared, exif_orientation="apply"))


def test_description_of_images_of_different_sizes_names_the_fix():
    with pytest.raises(ValueError, match=r"tf_flowers.*\(None, None, 3\).*random_area_crop"):
        dataset_info(config("tf_flowers"))
    fields = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 36}
    assert dataset_info(config("tf_flowers", **fields)).image_shape == (32, 32, 3)
