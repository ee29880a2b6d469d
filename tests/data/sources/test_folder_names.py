"""Unusual names and links in image folders: datasets are read, and non-images are left out."""

import os

import pytest
from sample_images import config, make_image, write

from imta_jax.data import eval_batches, load_dataset

FIELDS = {"preprocessing": "random_area_crop", "image_size": 16, "resize": 19}


@pytest.fixture
def root(tmp_path):
    files = {
        f"{split}/{name}/{i}.png": make_image(20, 24, i, cells=4)
        for split in ("train", "test")
        for name in "ab"
        for i in range(4)
    }
    return write(tmp_path / "pets", files)


def test_numbers_of_images(root):
    assert len(load_dataset(config(root, **FIELDS)).splits["test"]) == 8


@pytest.mark.parametrize("name", [b".caf\xe9.png", b"caf\xe9.txt", b"caf\xe9"])
def test_hidden_and_other_files_need_not_be_utf_8(name, root, caplog):
    (root / "test/a" / os.fsdecode(name)).write_bytes(b"")
    assert len(load_dataset(config(root, **FIELDS)).splits["test"]) == 8
    assert all(message.isprintable() for message in caplog.messages)


@pytest.mark.parametrize("contents", ["of 1.png", "text"])
def test_names_of_images_need_not_be_utf_8(contents, root, tmp_path, caplog):
    name = root / "test/a" / os.fsdecode(b"caf\xe9.png")
    name.write_bytes(b"text" if contents == "text" else (root / "test/a/1.png").read_bytes())
    fields = {**FIELDS, "max_undecodable": 0.5, "index_dir": str(tmp_path / "index")}
    for _ in range(2):  # the second time with the stored index
        dataset = load_dataset(config(root, **fields))
        assert len(dataset.splits["test"]) + dataset.skipped["test"] == 9
    assert dataset.skipped["test"] == (contents == "text")
    assert ("caf\ufffd.png" in caplog.text) == (contents == "text")  # left out by name
    assert all(message.isprintable() for message in caplog.messages)


def test_batches_of_images_whose_names_are_not_utf_8(root):
    (root / "test/a/1.png").rename(root / "test/a" / os.fsdecode(b"caf\xe9.png"))
    dataset = load_dataset(config(root, **FIELDS))
    batches = list(eval_batches(dataset.splits["test"], dataset.preprocessing, 8))
    assert batches[0].images.any(axis=(1, 2, 3)).all()


def test_folders_that_are_not_utf_8_are_named(root):
    file = root / os.fsdecode(b"test/caf\xe9/1.png")
    file.parent.mkdir()
    file.write_bytes((root / "test/a/1.png").read_bytes())
    with pytest.raises(ValueError, match=r"pets/test.*UTF-8.*caf.xe9"):
        load_dataset(config(root, **FIELDS))


@pytest.mark.parametrize(
    "name",
    ["x\ny.png", "-rf.png", "[a]*?.png", "%s%20.png", "\"'\\.png", "~x.png", "🙂.png", " .png"],
)
def test_unusual_names_of_images_are_read(name, root):
    (root / "test/a" / name).write_bytes((root / "test/a/1.png").read_bytes())
    assert len(load_dataset(config(root, **FIELDS)).splits["test"]) == 9


def test_a_link_to_a_parent_folder_is_followed_once(root, caplog):
    (root / "test/a/up").symlink_to(root)
    dataset = load_dataset(config(root, **FIELDS))
    assert len(dataset.splits["test"]) == 8
    (actual,) = dataset.findings.misplaced
    assert actual.count == 16


@pytest.mark.parametrize("target", ["/nowhere", "loop.png", "/dev/zero"])
def test_links_to_no_file_are_left_out(target, root):
    (root / "test/a/loop.png").symlink_to(target)
    dataset = load_dataset(config(root, **FIELDS, max_undecodable=0.5))
    assert len(dataset.splits["test"]) == 8 and dataset.skipped["test"] == 1
