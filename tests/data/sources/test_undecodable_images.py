"""Image folders: images that cannot be decoded or read."""

import errno
import os

import pytest
from image_folders import NAMES, contents, folder, load, paths, read, write_broken_images
from sample_images import config, write

from imta_jax.data.sources import SourceRequest
from imta_jax.data.sources.encoded_split import index_image_files, source_split

SPLITS = ("train", "test")


def test_undecodable_images_are_skipped_counted_and_logged(tmp_path, caplog):
    root = folder(tmp_path)
    names = write_broken_images(root)
    dataset = load(root, max_undecodable=0.5)
    assert dataset.skipped == {"train": 6, "test": 0}
    actual = paths(dataset.splits["train"]) + paths(dataset.splits["validation"])
    assert len(actual) == 13 and not {str(root / name) for name in names} & set(actual)
    assert f"6 of 19 images of {root}/train" in caplog.text
    for name in names:
        assert str(root / name) in caplog.text


def test_broken_links_and_folders_are_logged_as_such(tmp_path, caplog):
    root = folder(tmp_path)
    first = next((root / "train").iterdir())
    (first / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (first / "folder.jpg").mkdir()
    read(root, max_undecodable=1)
    for text in (f"link.jpg (a link to '{tmp_path}/nowhere.jpg'", "folder.jpg (a folder"):
        assert f"{first}/{text}" in caplog.text


def test_too_many_undecodable_images_raise(tmp_path):
    root = folder(tmp_path)
    write_broken_images(root)
    with pytest.raises(ValueError, match=r"6 of 19 .*config\.data\.max_undecodable.*0\.3"):
        load(root, max_undecodable=0.3)
    assert read(root, max_undecodable=6 / 19).splits["train"].skipped == 6


def test_at_most_ten_undecodable_images_are_named(tmp_path, caplog):
    root = write(folder(tmp_path), {f"train/cat/text {i:02}.jpg": b"text" for i in range(13)})
    read(root, max_undecodable=1)
    assert (
        "text 09.jpg (neither JPEG nor PNG) and 3 more" in caplog.text
        and "text 10.jpg" not in caplog.text
    )


def test_split_without_decodable_images_raises(tmp_path):
    root = write(folder(tmp_path, splits=("train",)), {"test/cat/1.jpg": b"text"})
    with pytest.raises(ValueError, match=r"test\b.*\b0\b"):
        read(root, max_undecodable=1)


def test_folder_named_like_an_image_and_link_to_itself_are_skipped(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/x.jpg").mkdir()
    os.symlink("loop.jpg", root / "train/cat/loop.jpg")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 2


def test_pipes_are_skipped_without_opening_them(tmp_path, caplog):
    root = folder(tmp_path)
    os.mkfifo(root / "train/cat/pipe.jpg")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    assert "pipe.jpg (a pipe" in caplog.text


def test_file_larger_than_the_memory_is_skipped_without_reading_it(tmp_path, caplog):
    root = folder(tmp_path)
    with (root / "train/cat/huge.jpg").open("wb") as file:
        file.truncate(10**12)  # takes no space
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    assert "huge.jpg (more than 1,073,741,824 bytes)" in caplog.text


def test_file_address_is_read_like_its_local_path(tmp_path, caplog):
    root = folder(tmp_path)
    os.mkfifo(root / "train/cat/pipe.jpg")
    os.rename(root / "train/cat/0.jpg", os.fsencode(root / "train/cat") + b"/\xff.jpg")
    local, address = (read(f"{start}{root}", max_undecodable=0.5) for start in ("", "file://"))
    assert address.splits["train"].skipped == 1 and address.name == local.name == "pets"
    assert contents(address) == contents(local)
    assert caplog.text.count(f"{root}/train/cat/pipe.jpg (a pipe") == 2


def test_unreadable_file_is_skipped_and_unreadable_folder_raises(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/0.jpg").chmod(0)
    if os.access(root / "train/cat/0.jpg", os.R_OK):
        pytest.skip("root may read every file")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    (root / "train/dog").chmod(0)
    with pytest.raises(PermissionError, match="pets"):
        read(root, max_undecodable=0.5)
    (root / "train/dog").chmod(0o700)


def test_files_in_a_folder_that_may_not_be_opened_are_named_so(tmp_path, caplog, monkeypatch):
    root, stat = folder(tmp_path, each=3), os.stat
    images = [[str(root / f"{s}/{n}/{i}.jpg") for n in NAMES for i in range(3)] for s in SPLITS]

    def reject(path, **options):
        if os.fsdecode(path) == images[0][0]:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", reject)
    (root / "train/cat/0.jpg").unlink()  # so that reading it fails, also for root
    split_name, labels = "mine", [0] * 3 + [1] * 3 + [2] * 3
    request = SourceRequest.from_config(config(root, max_undecodable=0.5), encoded=True)
    indexed = index_image_files(images[0], labels, NAMES, request, split_name)
    source_split(indexed, request, split_name)
    assert f"{images[0][0]} (cannot be read: permission denied)" in caplog.text
