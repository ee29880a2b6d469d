"""Custom data sources: arrays, files, options and wrong return values."""

import numpy as np
import pytest
from PIL import Image

import imta_jax
from imta_jax.data import ImageSource, load_dataset
from imta_jax.data.fingerprint import fingerprint
from imta_jax.data.sources import source_component
from imta_jax.errors import InputError
from imta_jax.runtime.registry import SOURCES

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
SPLITS = {"train": (IMAGES, LABELS), "test": (IMAGES[::-1], LABELS[::-1])}
HOLD_OUT = {"validation_examples": 3, "crop_padding": 1}
pytestmark = pytest.mark.usefixtures("restored_registries")


class BytesPath:
    """A path of bytes; paths must be text."""

    def __fspath__(self):
        return b"a"


@pytest.fixture
def source(monkeypatch):
    """A function that registers a source with a return value and loads it."""

    def load(returned, **fields):
        factory = returned if callable(returned) else lambda options: returned
        monkeypatch.setitem(SOURCES._components, "mine", factory)
        return load_dataset({"source": "mine", **HOLD_OUT, **fields})

    return load


def test_arrays_become_a_dataset_with_a_fingerprint(source):
    dataset = source(ImageSource(SPLITS, class_names=("a", "b", "c"), name="named"))
    assert (dataset.name, dataset.class_names) == ("named", ("a", "b", "c"))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 12,
    }
    np.testing.assert_array_equal(dataset.splits["test"].images, IMAGES[::-1])
    again = source(ImageSource(SPLITS, class_names=("a", "b", "c")))
    assert fingerprint(again) == fingerprint(dataset)
    other = source(ImageSource({**SPLITS, "test": (IMAGES, LABELS[::-1])}, ("a", "b", "c")))
    assert fingerprint(other) != fingerprint(dataset)


def test_files_give_the_same_dataset_as_arrays(source, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    files = {"train": (paths, LABELS.tolist()), "test": (paths[::-1], LABELS[::-1])}
    actual = source(ImageSource(files), index_dir="")
    expected = source(ImageSource(SPLITS))
    for name, split in expected.splits.items():
        np.testing.assert_array_equal(actual.splits[name].array, split.array)
        np.testing.assert_array_equal(actual.splits[name].labels, split.labels)
    cropped = {"preprocessing": "random_area_crop", "image_size": 8, "resize": 8}
    assert source(ImageSource(files), index_dir="", **cropped).image_shape == (8, 8, 3)


def test_options_and_splits_of_the_config_are_used(source):
    def make(options):
        return ImageSource({"fold_1": (IMAGES[: options.count], LABELS[: options.count])})

    fields = {"train_split": "fold_1", "test_examples": 3, "validation_split": "hold_out"}
    dataset = source(make, source_options={"count": 9}, **fields)
    assert sum(map(len, dataset.splits.values())) == 9
    assert dataset.name == "mine"
    with pytest.raises(ValueError, match=r"data\.source 'mine'.*'count', which is not set"):
        source(make, **fields)


@pytest.mark.parametrize(
    "returned, message",
    [
        (SPLITS, r"imta_jax\.data\.ImageSource; found dict"),
        (None, r"ImageSource; found NoneType"),
        (ImageSource({}), r"splits.*found dict"),
        (ImageSource({"train": IMAGES}), r"'train': ndarray of shape \(12, 8, 8, 3\)"),
        (ImageSource({"train": (IMAGES, LABELS, 1)}), r"split 'train'.*3 entries"),
        (ImageSource({"train": (7, LABELS), "test": (7, LABELS)}), r"split '\w+'.*found int"),
        (
            ImageSource({"train": (["a", 1], [0, 1]), "test": (["a"], [0])}),
            r"'train': image 1.*found int",
        ),
        (
            ImageSource({"train": (["a"], [0]), "test": (["a"], [0])}),
            r"train.*/a does not exist",
        ),
        (ImageSource({"train": (["a\0b"], [0]), "test": (["a"], [0])}), r"image 0.*'a\\x00b'"),
        (
            ImageSource({"train": (["a\ud800"], [0]), "test": (["a"], [0])}),
            r"image 0.*'a\\ud800'",
        ),
        (ImageSource({"train": ([BytesPath()], [0]), "test": (["a"], [0])}), "image 0.*BytesPath"),
        (
            ImageSource({"train": (memoryview(IMAGES), LABELS)} | {"test": (["a"], [0])}),
            "memoryview",
        ),
        (ImageSource(SPLITS | {"train": (IMAGES, [[0], [0, 1]] * 6)}), r"'train': labels.*\[N\]"),
        (
            ImageSource({n: ([__file__], [10**9]) for n in ("train", "test")}),
            r"index 0 is 1000000000.*less than 1",
        ),
        (ImageSource(SPLITS, class_names="abc"), r"class_names.*'abc'"),
        (ImageSource(SPLITS, class_names=np.array("a")), r"class_names.*array\('a'"),
        (ImageSource(SPLITS, class_names=("a", "b", "a")), r"class_names.*2 named 'a'"),
        (ImageSource(SPLITS, class_names=("a", "b")), r"label at index 2 is 2, expected 0 to 1"),
        (ImageSource(SPLITS | {"test": (IMAGES / 2, LABELS)}), r"test images.*float64.*uint8"),
        (ImageSource(SPLITS | {"test": (IMAGES, LABELS[1:])}), r"12 images but 11 labels"),
        (ImageSource({"train": SPLITS["train"]}), r"no test split, only: train"),
    ],
)
def test_invalid_source_return_values_are_rejected(source, returned, message):
    with pytest.raises((InputError, FileNotFoundError), match=message) as error:
        source(returned)
    assert "mine" in str(error.value)


def test_registered_names_come_before_others():
    @imta_jax.register_source("cifar10")
    def make(options):
        return ImageSource(SPLITS)

    assert load_dataset({"source": "cifar10", **HOLD_OUT}).image_shape == (8, 8, 3)
    assert source_component("cifar10").endswith("make")
    assert source_component("fashion_mnist_small") is None


def test_included_sources_have_no_options():
    with pytest.raises(InputError, match=r"fashion_mnist_small.*source_options width"):
        load_dataset({"source": "fashion_mnist_small", "source_options": {"width": 1}, **HOLD_OUT})


def test_a_missing_module_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"config\.data\.source.*'no_such_package'"):
        load_dataset({"source": "no_such_package.data:make", **HOLD_OUT})
