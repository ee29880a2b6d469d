"""Sources: .npz files, TFDS, and what is missing or unreadable."""

import errno
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sample_images import make_image, write

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
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read whatever its mode says
    with pytest.raises(PermissionError, match=r"images\.npz"):
        load_dataset(config(path))


def test_folder_named_like_an_npz_raises(tmp_path):
    (tmp_path / "images.npz").mkdir()
    with pytest.raises(ValueError, match=r"images\.npz.*folder"):
        load_dataset(config(str(tmp_path / "images.npz")))


@pytest.mark.parametrize("padding", [32, 1000])
def test_padding_as_large_as_the_image_raises(npz, padding):
    with pytest.raises(ValueError, match=rf"crop_padding.*{padding}.*32 x 32"):
        load_dataset(config(npz(), crop_padding=padding))


@pytest.mark.parametrize("source", ["", "  "])
def test_empty_source_raises(source):
    with pytest.raises(ValueError, match=r"config\.data\.source"):
        load_dataset(config(source))


def test_dataset_without_images_raises_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("imta_jax.data.sources.tfds._prepare", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=r"glue.*images with one class label each"):
        load_dataset(config("glue", data_dir=str(tmp_path), download=True))


def test_npz_class_names_set_the_number_of_classes(npz):
    dataset = load_dataset(config(npz(class_names=np.array(list("abcde")))))
    assert dataset.class_names == tuple("abcde") and dataset.num_classes == 5


def test_npz_named_cifar10_does_not_use_published_statistics(npz):
    assert "computed" in load_dataset(config(npz("cifar10.npz"))).statistics_source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, "lacks test_labels; found: train_images, .*train_images"),
        ({"test_labels": np.array([0, 1, 2, 3, 4, 1, 2, 3])}, "test label at index 4.*4.*0 to 3"),
        ({"train_labels": np.arange(40) % 4 - 1}, "train label at index 0.*-1"),
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
        ({"class_names": np.array(["a", "", "b", "c"])}, "class_names.*without a name"),
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
    with pytest.raises(ValueError, match="train_images is damaged"):
        load_dataset(config(path))


@pytest.mark.parametrize("cut", [0, 50, -1, -300])
@pytest.mark.parametrize("key", ["train_images", "train_labels"])
def test_npz_member_that_is_empty_or_cut_raises_with_its_name(npz, key, cut):
    path, (whole, changed) = npz(), (io.BytesIO(), io.BytesIO())
    np.save(whole, ARRAYS[key])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = whole.getvalue()[:cut] if name == f"{key}.npy" else old.read(name)
            new.writestr(name, content)
    path.write_bytes(changed.getvalue())
    with pytest.raises(ValueError, match=rf"{key} is damaged"):
        load_dataset(config(path))


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        load_dataset(config(tmp_path / "nowhere.npz"))


@pytest.mark.parametrize(
    ("source", "closest"), [("cifar11", "cifar10"), ("fashion_mnist_smal", "fashion_mnist_small")]
)
def test_unknown_source_lists_valid_ones_closest_first(source, closest):
    with pytest.raises(ValueError, match=rf"'{source}'.*: {closest}, .*\.npz"):
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


def test_tfds_data_that_are_missing_raise_with_folder_and_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(config("cifar100", data_dir=str(tmp_path)))
    assert str(tmp_path / "cifar100") in str(error.value)
    command = f"tfds.builder('cifar100', data_dir='{tmp_path}').download_and_prepare()"
    assert command in str(error.value)


def test_tfds_data_that_are_incomplete_raise(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))


def test_failed_tfds_download_raises_with_the_reason(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(self, **settings):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(FileNotFoundError, match=r"cifar10.*no route to host"):
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wine_quality", "wine_quality.*images with one class label each"),
        ("tf_flowers", r"image.*\(None, None, 3\).*random_area_crop"),
    ],
)
def test_unsupported_tfds_datasets_raise(tmp_path, source, message):
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


def test_tfds_dataset_without_test_split_raises_with_its_splits(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():
        prepared_without_test_split(tfds, tmp_path)
    with pytest.raises(ValueError, match=r"mnist.*train.*test_split"):
        load_dataset(config("mnist", data_dir=str(tmp_path)))


# Missing, unreachable and interrupted sources


def test_unknown_tfds_version_raises(tmp_path):
    with pytest.raises(ValueError, match=r"cifar10.*9\.9\.9.*3"):
        load_dataset(config("cifar10:9.9.9", data_dir=str(tmp_path)))


def test_another_prepared_tfds_version_is_named_with_the_way_to_read_it(tmp_path):
    (tmp_path / "cifar10/1.2.3").mkdir(parents=True)
    message = rf"version 1\.2\.3 .*config\.data\.source={tmp_path}/cifar10/1\.2\.3"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))


RANDOM_AREA_CROP = {
    "preprocessing": "random_area_crop",
    "image_size": 32,
    "resize": 36,
    "min_area": 0.1,
}
RANDOM_AREA_CROP |= {"flip": True, "index_dir": "", "max_undecodable": 0.0}
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def tar_of(files):
    """A .tar of {name: bytes}."""
    contents = io.BytesIO()
    with tarfile.open(fileobj=contents, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return contents.getvalue()


def jpeg(seed):
    contents = io.BytesIO()
    make_image(40 + seed, 50, seed).save(contents, "JPEG")
    return contents.getvalue()


@pytest.fixture
def archives(tmp_path):
    """ImageNet's archives with two classes and a few images."""
    classes = {"n01440764": range(6), "n01443537": range(6, 12)}
    inner = {
        f"{name}.tar": tar_of({f"{name}_{i}.JPEG": jpeg(i) for i in some})
        for name, some in classes.items()
    }
    validation = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i) for i in range(1, 4)}
    contents = dict(zip(ARCHIVES, (tar_of(inner), tar_of(validation)), strict=True))
    return write(tmp_path / "archives", contents)


def imagenet(tmp_path, **changes):
    fields = {"data_dir": str(tmp_path / "data"), "download": True, "test_split": "validation"}
    parts = {"validation_split": "carve", "validation_examples": 4}
    return config("imagenet2012", **{**RANDOM_AREA_CROP, **fields, **parts, **changes})


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_imagenet_is_prepared_from_its_archives(tmp_path, archives):
    dataset = load_dataset(imagenet(tmp_path, manual_dir=str(archives)))
    assert dataset.num_classes == 1000 and "published" in dataset.statistics_source
    lengths = {name: len(split) for name, split in dataset.splits.items()}
    assert lengths == {"train": 8, "validation": 4, "test": 3}
    for name in ("train", "validation"):
        split = dataset.splits[name]
        np.testing.assert_array_equal(split.labels, (split.sizes[:, 0] - 40) // 6)
    # The prepared dataset is read without the archives.
    again = load_dataset(imagenet(tmp_path, manual_dir=str(tmp_path / "nowhere")))
    np.testing.assert_array_equal(again.splits["train"].sizes, dataset.splits["train"].sizes)


@pytest.mark.parametrize("there", [[], ARCHIVES[:1], ARCHIVES[1:]])
@pytest.mark.parametrize("manual", [True, False])
def test_imagenet_without_its_archives_raises_with_instructions(tmp_path, there, manual):
    folder = tmp_path / ("manual" if manual else "data/downloads/manual")
    write(folder, dict.fromkeys(there, b""))
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(imagenet(tmp_path, manual_dir=str(folder) if manual else ""))
    message = str(error.value)
    missing = " and no ".join(name for name in ARCHIVES if name not in there)
    assert f"no {missing} in {folder}" in message and f"into {folder}" in message
    assert "https://image-net.org" in message and "config.data.manual_dir" in message
    assert "config.data.download" not in message  # it is True
    assert len(files_in(tmp_path)) == len(there)


def test_imagenet_without_download_raises_with_instructions(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(imagenet(tmp_path, download=False))
    message = str(error.value)
    assert f"{tmp_path}/data/imagenet2012/5.1.0" in message
    assert "ILSVRC2012_img_train.tar" in message and "config.data.download" in message


def test_missing_archives_of_another_dataset_raise_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"(?s)archives.*{tmp_path}/downloads/manual"):
        load_dataset(config("resisc45", data_dir=str(tmp_path), download=True, **RANDOM_AREA_CROP))
    assert not files_in(tmp_path)


def test_truncated_archive_raises(tmp_path, archives):
    path = archives / ARCHIVES[0]
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(FileNotFoundError, match=rf"truncated.*{archives}"):
        load_dataset(imagenet(tmp_path, manual_dir=str(archives)))
    assert not files_in(tmp_path / "data")


def full_disks():
    """The errors of a full disk by Python, TFDS, TensorFlow, and TensorFlow through TFDS."""
    import tensorflow as tf

    written = tf.errors.ResourceExhaustedError(None, None, "x.tfrecord; No space left on device")
    reraised = RuntimeError("ResourceExhaustedError: x.tfrecord; No space left on device")
    reraised.__cause__ = written
    predicted = OSError("Not enough disk space. Needed: 150 GiB (download: 1, generated: 149)")
    return [OSError(errno.ENOSPC, "No space left"), predicted, written, reraised]


@pytest.mark.parametrize("kind", range(4))
def test_full_disk_raises_with_the_free_space(tmp_path, monkeypatch, kind):
    import tensorflow_datasets as tfds

    def fail(self, **settings):
        raise full_disks()[kind]

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        OSError, match=r"the disk of .* is full: .* GB are free .*data_dir"
    ) as error:
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))
    assert error.value.errno == errno.ENOSPC and not files_in(tmp_path)


@pytest.mark.parametrize("field", ["source", "data_dir"])
def test_bucket_without_permission_raises_with_login_instructions(monkeypatch, field):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def refuse(*args, **settings):
        raise tf.errors.PermissionDeniedError(None, None, "401: no credentials\n when reading")

    def reraise(*args, **settings):
        try:
            refuse()
        except tf.errors.OpError as error:
            raise RuntimeError("PermissionDeniedError: Failed to construct dataset") from error

    monkeypatch.setattr(tf.io.gfile, "exists", refuse)
    monkeypatch.setattr(tfds, "builder", reraise)
    fields = {"source": "cifar10", field: "gs://bucket/folder"}
    message = r"gs://bucket/folder \(401: no cred.*gcloud auth application-default login"
    with pytest.raises(PermissionError, match=message):
        load_dataset(config(**fields))


@pytest.mark.parametrize(
    "fields", [{"source": "s3://b/c"}, {"source": "cifar10", "data_dir": "s3://b/c"}]
)
def test_unsupported_bucket_scheme_raises(fields):
    with pytest.raises(ValueError, match=r"s3://b/c.*TensorFlow"):
        load_dataset(config(**fields))


@pytest.mark.parametrize("failure", [OSError, RuntimeError])
def test_other_errors_are_not_translated(tmp_path, monkeypatch, failure):
    import tensorflow_datasets as tfds

    def fail(*args, **settings):
        raise failure("something else")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(failure, match=r"^something else$"):
        load_dataset(config("cifar10", data_dir=str(tmp_path)))


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import imta_jax.data as data

fields = dict(data_dir="", download=False, validation_examples=100, validation_seed=0)
crop = dict(preprocessing="random_area_crop", image_size=16, resize=20)
crop |= dict(min_area=0.5, flip=True)
dataset = data.load_dataset(dict(source="fashion_mnist_small", **fields))
split, view = dataset.splits["validation"], dataset.preprocessing
assert len(list(data.train_batches(split, view, batch_size=30, seed=0, epoch=0))) == 3
assert len(list(data.eval_batches(split, view, 30))) == 4
assert len(list(data.eval_batches(split, view, 30, pipeline="tf_data"))) == 4
for attempt in (
    lambda: data.load_dataset(dict(source="cifar10", **fields)),
    lambda: data.load_dataset(dict(source="fashion_mnist_small", **crop, **fields)),
):
    try:
        attempt()
    except ModuleNotFoundError as error:
        print(error)
    else:
        raise SystemExit("no error without TensorFlow")
"""


def test_arrays_need_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    source, resized = done.stdout.splitlines()
    assert "TensorFlow" in resized and "pip install tensorflow-cpu" in resized
    assert "'cifar10'" in source and "TensorFlow Datasets" in source
    assert "fashion_mnist_small, or a path ending in .npz" in source
