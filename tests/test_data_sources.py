"""Where `imta_jax.data` reads from: .npz files, TFDS, and what is missing or unreadable."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imta_jax.data import load_dataset

RNG = np.random.default_rng(0)
ARRAYS = {
    "train_images": RNG.integers(0, 256, (40, 28, 28), np.uint8),
    "train_labels": np.arange(40) % 4,
    "test_images": RNG.integers(0, 256, (8, 28, 28), np.uint8),
    "test_labels": np.arange(8) % 4,
}


def config(source, **changes):
    fields = {"data_dir": "", "download": False, "validation_examples": 8, "validation_seed": 0}
    return {"source": str(source), **fields, **changes}


@pytest.fixture
def npz(tmp_path):
    def write(name="images.npz", **changes):
        arrays = {key: value for key, value in {**ARRAYS, **changes}.items() if value is not None}
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


def test_npz_is_read_and_grayscale_gets_one_channel(npz):
    dataset = load_dataset(config(npz()))
    assert dataset.name == "images" and dataset.image_shape == (32, 32, 1)
    assert dataset.class_names == ("0", "1", "2", "3")
    train = dataset.splits["train"]
    np.testing.assert_array_equal(
        train.images[:, 2:-2, 2:-2, 0], ARRAYS["train_images"][train.source_index]
    )


def test_npz_class_names_set_the_number_of_classes(npz):
    dataset = load_dataset(config(npz(class_names=np.array(list("abcde")))))
    assert dataset.class_names == tuple("abcde") and dataset.num_classes == 5


def test_npz_named_like_cifar10_has_its_own_statistics(npz):
    assert "computed" in load_dataset(config(npz("cifar10.npz"))).statistics_source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, "lacks test_labels; found: train_images, .*; expected: train_im"),
        ({"test_labels": np.array([0, 1, 2, 3, 4, 1, 2, 3])}, "test label at index 4 is 4, .* 3;"),
        ({"train_labels": np.arange(40) % 4 - 1}, "train label at index 0 is -1"),
        ({"train_labels": np.arange(39) % 4}, "train: 40 images but 39 labels"),
        ({"train_images": ARRAYS["train_images"] / 255}, "train images are float64"),
        ({"test_images": ARRAYS["test_images"][:, :20]}, r"test images are \(20, 28, 1\) but"),
        ({"test_images": ARRAYS["test_images"][:0]}, "test images are empty"),
        ({"class_names": np.array(list("abc"))}, "train label at index 3 is 3, expected 0 to 2"),
        ({"class_names": np.arange(4)}, "class_names is int64 of shape"),
    ],
)
def test_bad_npz_is_refused_with_what_was_found(npz, change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(config(npz(**change)))


def test_pickled_arrays_are_refused(npz):
    objects = np.empty(40, object)
    objects[:] = list(ARRAYS["train_images"])
    with pytest.raises(ValueError, match="train_images cannot be read without unpickling"):
        load_dataset(config(npz(train_images=objects)))


def test_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, ARRAYS["train_images"])
    with pytest.raises(ValueError, match=r"array.npz is not an .npz archive"):
        load_dataset(config(path))


def test_damaged_archive_is_refused(npz):
    path = npz()
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train_images is damaged"):
        load_dataset(config(path))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.npz"):
        load_dataset(config(tmp_path / "nowhere.npz"))


@pytest.mark.parametrize(
    ("source", "closest"), [("cifar11", "cifar10"), ("fashion_mnist_smal", "fashion_mnist_small")]
)
def test_unknown_source_lists_valid_ones_closest_first(source, closest):
    with pytest.raises(ValueError, match=rf"unknown dataset '{source}'; .*: {closest}, .*\.npz"):
        load_dataset(config(source))


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
        rows = {"image": ARRAYS["train_images"][..., None], "label": ARRAYS["train_labels"]}
        return tf.data.Dataset.from_tensor_slices(rows)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        dataset = load_dataset(config("mnist", data_dir=str(tmp_path), download=True))
    assert "computed" in dataset.statistics_source
    split = dataset.splits["test"]
    np.testing.assert_array_equal(split.images[:, 2:-2, 2:-2, 0], ARRAYS["train_images"])
    np.testing.assert_array_equal(split.labels, ARRAYS["train_labels"])


def test_tfds_data_not_there_names_folder_and_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(config("cifar100", data_dir=str(tmp_path)))
    assert str(tmp_path / "cifar100") in str(error.value)
    command = f"tfds.builder('cifar100', data_dir='{tmp_path}').download_and_prepare()"
    assert command in str(error.value)


def test_tfds_half_prepared_counts_as_not_there(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))


def test_tfds_failed_download_names_folder_and_reason(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(self, **settings):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(FileNotFoundError, match=r"fetching it failed \(no route to host\)"):
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wine_quality", "not one of images with one class label each; its features are"),
        ("tf_flowers", r"image has shape \(None, None, 3\), expected one known height"),
    ],
)
def test_tfds_of_other_kinds_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(config(source, data_dir=str(tmp_path)))


def prepared_without_test_split(tfds, folder):
    """Writes a TFDS dataset "mnist" that has a training split only."""

    class Mnist(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            image = tfds.features.Image(shape=(28, 28, 1))
            label = tfds.features.ClassLabel(num_classes=10)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"image": ARRAYS["train_images"][i][..., None], "label": i}

    Mnist(data_dir=folder).download_and_prepare()


def test_tfds_without_test_split_names_those_it_has(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():
        prepared_without_test_split(tfds, tmp_path)
    with pytest.raises(ValueError, match="mnist has no split to test with, only: train"):
        load_dataset(config("mnist", data_dir=str(tmp_path)))


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import imta_jax.data as data

fields = dict(data_dir="", download=False, validation_examples=100, validation_seed=0)
dataset = data.load_dataset(dict(source="fashion_mnist_small", **fields))
split, view = dataset.splits["validation"], dataset.preprocessing
assert len(list(data.train_batches(split, view, batch_size=30, seed=0, epoch=0))) == 3
assert len(list(data.eval_batches(split, view, 30))) == 4
for attempt in (
    lambda: data.eval_batches(split, view, 30, pipeline="tf_data"),
    lambda: data.load_dataset(dict(source="cifar10", **fields)),
):
    try:
        attempt()
    except ModuleNotFoundError as error:
        print(error)
    else:
        raise SystemExit("TensorFlow was not missed")
"""


def test_arrays_need_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pipeline, source = done.stdout.splitlines()
    assert 'pipeline "tf_data" needs TensorFlow' in pipeline and '"numpy"' in pipeline
    assert "'cifar10' would be read by TensorFlow Datasets" in source
    assert "fashion_mnist_small, or a path ending in .npz" in source
