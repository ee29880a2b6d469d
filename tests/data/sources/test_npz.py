""".npz files as a source."""

import io
import os
import zipfile

import numpy as np
import pytest
from array_datasets import ARRAYS, config
from unreadable_archives import unreadable

from imta_jax.data import load_dataset


@pytest.fixture
def npz(tmp_path):
    def write(name="images.npz", **changes):
        arrays = {key: value for key, value in {**ARRAYS, **changes}.items() if value is not None}
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


def test_npz_is_read_and_grayscale_images_have_one_channel(npz):
    dataset = load_dataset(config(npz()))
    assert dataset.name == "images" and dataset.image_shape == (32, 32, 1)
    assert dataset.class_names == ("0", "1", "2", "3")
    train = dataset.splits["train"]
    np.testing.assert_array_equal(
        train.images[:, 2:-2, 2:-2, 0], ARRAYS["train_images"][train.source_index]
    )


def test_npz_without_read_permission_raises_a_permission_error(npz, monkeypatch):
    path = npz()
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read every file.
    with pytest.raises(PermissionError, match=r"images\.npz"):
        load_dataset(config(path))


def test_folder_named_like_an_npz_raises(tmp_path):
    (tmp_path / "images.npz").mkdir()
    with pytest.raises(ValueError, match=r"images\.npz.*folder"):
        load_dataset(config(str(tmp_path / "images.npz")))


def test_a_pipe_named_like_an_npz_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "images.npz")
    with pytest.raises(FileExistsError, match=r"images\.npz is a pipe"):
        load_dataset(config(str(tmp_path / "images.npz")))


@pytest.mark.parametrize("padding", [32, 1000])
def test_padding_as_large_as_the_image_raises(npz, padding):
    with pytest.raises(ValueError, match=rf"crop_padding.*32 x 32.*found {padding}"):
        load_dataset(config(npz(), crop_padding=padding))


def test_npz_class_names_set_the_number_of_classes(npz):
    dataset = load_dataset(config(npz(class_names=np.array(list("abcde")))))
    assert dataset.class_names == tuple("abcde") and dataset.num_classes == 5


def test_npz_named_cifar10_does_not_use_published_statistics(npz):
    assert "computed" in load_dataset(config(npz("cifar10.npz"))).statistics_source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, "test_labels.*train_images"),
        ({"test_labels": np.array([0, 1, 2, 3, 4, 1, 2, 3])}, "test label.*index 4.*4.*0 to 3"),
        ({"train_labels": np.arange(40) % 4 - 1}, "train label at index 0.*-1"),
        ({"train_labels": np.arange(40).astype("m8[s]")}, "train labels.*timedelta64"),
        ({"train_labels": np.arange(39) % 4}, "train.*40 images.*39 labels"),
        ({"train_images": ARRAYS["train_images"] / 255}, "train images.*float64"),
        (
            {"test_images": ARRAYS["test_images"][:, :20]},
            r"test images.*\(20, 28, 1\).*\(28, 28, 1\)",
        ),
        ({"test_images": ARRAYS["test_images"][:0]}, r"test images.*\(0, 28, 28, 1\)"),
        ({"class_names": np.array(list("abc"))}, "train label at index 3.*3.*0 to 2"),
        ({"class_names": np.arange(4)}, "class_names.*int64"),
        ({"class_names": np.array(["a", "b", "a", "c"])}, "class_names.*2 classes.*'a'"),
        ({"class_names": np.array(["a", "", "b", "c"])}, "class_names"),
        ({"class_names": np.array(["a", "b\udcff", "c", "d"])}, r"class 1 is 'b\\udcff'.*Unicode"),
    ],
)
def test_invalid_npz_raises(npz, change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(config(npz(**change)))


def test_pickled_arrays_raise(npz):
    objects = np.empty(40, object)
    objects[:] = list(ARRAYS["train_images"])
    with pytest.raises(ValueError, match=r"train_images.*pickled"):
        load_dataset(config(npz(train_images=objects)))


def test_file_that_is_not_an_archive_raises(tmp_path):
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, ARRAYS["train_images"])
    with pytest.raises(ValueError, match=r"array\.npz"):
        load_dataset(config(path))


def test_damaged_archive_raises(npz):
    path = npz()
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train_images"):
        load_dataset(config(path))


@pytest.mark.parametrize("cut", [0, 50, -1, -300])
@pytest.mark.parametrize("key", ["train_images", "train_labels"])
def test_npz_member_that_is_empty_or_cut_raises_with_its_name(npz, key, cut):
    path, (complete, changed) = npz(), (io.BytesIO(), io.BytesIO())
    np.save(complete, ARRAYS[key])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = complete.getvalue()[:cut] if name == f"{key}.npy" else old.read(name)
            new.writestr(name, content)
    path.write_bytes(changed.getvalue())
    with pytest.raises(ValueError, match=key):
        load_dataset(config(path))


@pytest.mark.parametrize("kind", ["encrypted", "method", "shape", "header"])
def test_npz_that_numpy_cannot_read_raises_with_the_member(npz, kind):
    path = unreadable(npz(), "test_labels", kind)
    with pytest.raises(ValueError, match="test_labels is damaged"):
        load_dataset(config(path))


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        load_dataset(config(tmp_path / "nowhere.npz"))


def test_constant_images_raise_with_the_field(npz):
    path = npz(train_images=np.zeros_like(ARRAYS["train_images"]))
    with pytest.raises(ValueError, match=r"config\.data\.source: channel 0 .* 0 "):
        load_dataset(config(path))


def test_bytes_before_an_archive_raise_without_advice_to_unpickle(npz):
    path = npz()
    path.write_bytes(b"bytes in front" + path.read_bytes())
    with pytest.raises(ValueError, match=rf"{path} is not an \.npz archive") as error:
        load_dataset(config(path))
    assert "pickle" not in str(error.value)


def test_too_few_class_names_raise_with_their_number(npz):
    with pytest.raises(ValueError, match=r"expected 0 to 1; .* 2 classes: correct class_names"):
        load_dataset(config(npz(class_names=np.array(["a", "b"]))))
