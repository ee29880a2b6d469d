"""Sources that cannot be read: unknown names, full disks and buckets."""

import errno
import os

import pytest
from array_datasets import config, files_in

from imta_jax.data import load_dataset
from imta_jax.errors import UserError


@pytest.mark.parametrize("source", ["", "  "])
def test_empty_source_raises(source):
    with pytest.raises(ValueError, match=r"config\.data\.source"):
        load_dataset(config(source))


def test_a_dotted_path_without_a_colon_is_suggested_with_one():
    with pytest.raises(ValueError, match=r"'my\.data\.make'.* my\.data:make"):
        load_dataset(config("my.data.make"))


@pytest.mark.parametrize(
    ("source", "closest"), [("cifar11", "cifar10"), ("fashion_mnist_smal", "fashion_mnist_small")]
)
def test_unknown_source_lists_valid_ones_closest_first(source, closest):
    with pytest.raises(ValueError, match=rf"'{source}'.*: {closest}, .*\.npz"):
        load_dataset(config(source))


@pytest.mark.parametrize("source", ["/tmp/LONG", "/tmp/LONG.npz", "LONG.npz", "~/LONG/a", "LONG"])
def test_too_long_name_raises_with_the_field(source):
    long = "x" * 300
    with pytest.raises(
        (OSError, ValueError), match=rf"(config\.data\.source|dataset).*{long}"
    ) as error:
        load_dataset(config(source.replace("LONG", long)))
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("rejected", ["stat", "access"])
def test_folder_without_permissions_raises_with_the_field(tmp_path, monkeypatch, rejected):
    """As for a folder of mode 000, and for a folder in one of mode 000."""
    (tmp_path / "pets").mkdir()

    def stat(path, **options):
        if str(path).startswith(f"{tmp_path}/pets"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system_stat(path, **options)

    system_stat = os.stat
    if rejected == "stat":
        monkeypatch.setattr(os, "stat", stat)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = rf"config\.data\.source is {tmp_path}/pets, .*permission denied"
    with pytest.raises(PermissionError, match=message):
        load_dataset(config(f"{tmp_path}/pets"))


@pytest.mark.parametrize("source", ["link", "./link", "link/pets", "link.npz"])
def test_a_broken_link_raises_with_where_it_points(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    os.symlink("/moved/away", source.removeprefix("./").partition("/")[0])
    expected = rf"config\.data\.source.*{tmp_path}/link.* is a broken link to '/moved/away'"
    with pytest.raises(FileNotFoundError, match=expected):
        load_dataset(config(source if source != "link/pets" else f"{tmp_path}/{source}"))


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
    with pytest.raises(OSError, match=rf"{tmp_path}.* GB .*data_dir") as error:
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))
    assert error.value.errno == errno.ENOSPC and not files_in(tmp_path)


def test_read_only_data_dir_raises_with_the_field(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **settings):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "downloads"))

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    message = rf"{tmp_path}/downloads: Read-only file system.*config\.data\.data_dir"
    with pytest.raises(PermissionError, match=message):
        load_dataset(config("cifar10", data_dir=str(tmp_path), download=True))


@pytest.mark.parametrize("field", ["source", "data_dir"])
def test_bucket_without_permission_raises_with_login_instructions(monkeypatch, field):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def fail(*args, **settings):
        raise tf.errors.PermissionDeniedError(None, None, "401: no credentials\n when reading")

    def reraise(*args, **settings):
        try:
            fail()
        except tf.errors.OpError as error:
            raise RuntimeError("PermissionDeniedError: Failed to construct dataset") from error

    monkeypatch.setattr(tf.io.gfile, "exists", fail)
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
