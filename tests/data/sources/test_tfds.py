"""TFDS datasets as a source: pixels, statistics, versions and unsupported datasets."""

import numpy as np
import pytest
import tfds_datasets
from array_datasets import ARRAYS, config

from imta_jax.data import load_dataset


def test_dataset_without_images_raises_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("imta_jax.data.sources.tfds._prepare", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match="glue"):
        load_dataset(config("glue", data_dir=str(tmp_path), download=True))


def test_tfds_is_read_with_names_and_published_statistics(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=60):
        dataset = load_dataset(config("cifar10", data_dir=str(tmp_path), validation_examples=20))
    assert dataset.name == "cifar10" and dataset.num_classes == 10
    assert dataset.image_shape == (32, 32, 3)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 40,
        "validation": 20,
        "test": 60,
    }
    assert dataset.mean == (0.4914, 0.4824, 0.4467) and "published" in dataset.statistics_source


def test_tfds_keeps_pixels_labels_and_order(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def as_dataset(self, *args, **kwargs):
        examples = {"image": ARRAYS["train_images"][..., None], "label": ARRAYS["train_labels"]}
        return tf.data.Dataset.from_tensor_slices(examples)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        dataset = load_dataset(config("mnist", data_dir=str(tmp_path), download=True))
    assert "computed" in dataset.statistics_source
    split = dataset.splits["test"]
    np.testing.assert_array_equal(split.images[:, 2:-2, 2:-2, 0], ARRAYS["train_images"])
    np.testing.assert_array_equal(split.labels, ARRAYS["train_labels"])


def test_missing_tfds_data_raise_with_folder_and_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(config("cifar100", data_dir=str(tmp_path)))
    assert str(tmp_path / "cifar100") in str(error.value)
    command = f"tfds.builder('cifar100', data_dir='{tmp_path}').download_and_prepare()"
    assert command in str(error.value)


def test_incomplete_tfds_data_raise(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/cifar10"):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))


def test_failed_tfds_download_raises_with_the_reason(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **settings):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(FileNotFoundError, match=r"cifar10.*no route to host"):
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wine_quality", "wine_quality"),
        ("tf_flowers", r"image.*\(None, None, 3\).*random_area_crop"),
    ],
)
def test_unsupported_tfds_datasets_raise(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(config(source, data_dir=str(tmp_path)))


def test_tfds_dataset_without_test_split_raises_with_its_splits(tmp_path):
    examples = [{"image": ARRAYS["train_images"][i][..., None], "label": i} for i in range(4)]
    tfds_datasets.prepare(
        tmp_path, "Mnist", {"train": examples}, shape=(28, 28, 1), version="3.0.1", num_classes=10
    )
    with pytest.raises(ValueError, match=r"mnist.*train.*test_split"):
        load_dataset(config("mnist", data_dir=str(tmp_path)))


def test_unknown_tfds_version_raises(tmp_path):
    with pytest.raises(ValueError, match=r"cifar10.*9\.9\.9.*3"):
        load_dataset(config("cifar10:9.9.9", data_dir=str(tmp_path)))


def test_another_prepared_version_is_named_with_its_source(tmp_path):
    (tmp_path / "cifar10/1.2.3").mkdir(parents=True)
    message = rf"1\.2\.3 .*config\.data\.source={tmp_path}/cifar10/1\.2\.3"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))
