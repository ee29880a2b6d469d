"""Archives that the user downloads: ImageNet and other TFDS datasets."""

import io
import tarfile

import numpy as np
import pytest
from array_datasets import config, files_in
from sample_images import make_image, write

from imta_jax.data import load_dataset

RANDOM_AREA_CROP = {
    "preprocessing": "random_area_crop",
    "image_size": 32,
    "resize": 36,
    "min_area": 0.1,
    "flip": True,
    "index_dir": "",
    "max_undecodable": 0.0,
}
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
        f"{name}.tar": tar_of({f"{name}_{i}.JPEG": jpeg(i) for i in images})
        for name, images in classes.items()
    }
    validation = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i) for i in range(1, 4)}
    contents = dict(zip(ARCHIVES, (tar_of(inner), tar_of(validation)), strict=True))
    return write(tmp_path / "archives", contents)


def imagenet(tmp_path, **changes):
    fields = {"data_dir": str(tmp_path / "data"), "download": True, "test_split": "validation"}
    parts = {"validation_split": "hold_out", "validation_examples": 4}
    return config("imagenet2012", **{**RANDOM_AREA_CROP, **fields, **parts, **changes})


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


def test_missing_archives_of_another_dataset_raise_with_their_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/downloads/manual"):
        load_dataset(config("resisc45", data_dir=str(tmp_path), download=True, **RANDOM_AREA_CROP))
    assert not files_in(tmp_path)


def test_truncated_archive_raises(tmp_path, archives):
    path = archives / ARCHIVES[0]
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(FileNotFoundError, match=str(archives)):
        load_dataset(imagenet(tmp_path, manual_dir=str(archives)))
    assert not files_in(tmp_path / "data")
