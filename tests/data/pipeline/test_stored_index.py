"""The stored index of an image folder."""

import os

import numpy as np
import pytest
from image_folders import check_labels, contents, folder, paths, read, write_broken_images
from PIL import Image
from sample_images import make_image, write

from imta_jax.data.pipeline import indexing, stored_index
from imta_jax.data.sources import storage
from imta_jax.data.sources.storage import FileState, file_states


def scans(monkeypatch):
    """A list with one entry per pass over the images."""
    seen, collect = [], indexing.collect
    monkeypatch.setattr(indexing, "collect", lambda *args: (seen.append(args), collect(*args))[1])
    return seen


def check_index(source, root):
    """Compares the splits with the paths, and the sizes with Pillow."""
    seen = [path for split in source.splits.values() for path in paths(split)]
    assert sorted(seen) == sorted(str(path) for path in root.glob("*/*/*.jpg"))
    for split in source.splits.values():
        check_labels(split, source.class_names)
        for path, size in zip(paths(split), split.images.sizes.tolist(), strict=True):
            with Image.open(path) as image:
                assert size == [image.height, image.width]


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A folder, a function that reads it with an index, the passes over its images, the index."""
    root, seen = folder(tmp_path, splits=("train",)), scans(monkeypatch)
    index_dir = tmp_path / "index"
    fields = {"index_dir": str(index_dir), "max_undecodable": 0.5, "test_examples": 3}
    return root, lambda at=root: read(at, **fields), seen, index_dir


def test_second_load_reads_no_image_and_returns_the_same_splits(indexed):
    root, again, seen, index_dir = indexed
    write_broken_images(root)
    first = again()
    assert len(seen) == 1 and len(list(index_dir.iterdir())) == 1
    second = again()
    assert len(seen) == 1
    assert contents(first) == contents(second) and second.splits["train"].skipped == 6


def test_undecodable_images_are_read_again_at_each_load(indexed, monkeypatch, caplog):
    root, again, seen, index_dir = indexed
    path = root / "train/cat/0.jpg"
    content = path.read_bytes()
    monkeypatch.setattr("imta_jax.data.sources.encoded_split.file_states", unknown_states)
    path.write_bytes(content[:300])
    assert again().splits["train"].skipped == 1 and again().splits["train"].skipped == 1
    assert str(index_dir) in caplog.text
    path.write_bytes(content)
    check_index(again(), root)
    assert len(seen) == 1 and again().splits["train"].skipped == 0


def unknown_states(paths):
    """States in a file system without sizes and modification times."""
    return [FileState(0, 0, True, True)] * len(paths)


def test_files_in_a_remote_file_system_have_sizes_and_times(tmp_path):
    import tensorflow as tf

    with tf.io.gfile.GFile("ram://states/a.jpg", "w") as file:
        file.write("1234")
    (actual, missing) = file_states(["ram://states/a.jpg", "ram://states/b.jpg"])
    assert actual.size == 4 and actual.regular and actual.readable
    assert missing == FileState(0, 0, True, True)


def test_replaced_file_in_a_remote_file_system_creates_a_new_index(tmp_path, caplog):
    import tensorflow as tf

    root = folder(tmp_path, splits=("train",))
    for path in root.rglob("*.jpg"):
        target = f"ram://pets/{path.relative_to(root)}"
        tf.io.gfile.makedirs(os.path.dirname(target))
        with tf.io.gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes()[: 300 if path.name == "0.jpg" else None])
    fields = {"index_dir": str(tmp_path / "index"), "max_undecodable": 0.5, "test_examples": 3}
    assert read("ram://pets", **fields).splits["train"].skipped == 3
    tf.io.gfile.remove("ram://pets/train/cat/0.jpg")  # ram:// would append.
    with tf.io.gfile.GFile("ram://pets/train/cat/0.jpg", "wb") as file:
        file.write((root / "train/cat/0.jpg").read_bytes())
    assert read("ram://pets", **fields).splits["train"].skipped == 2


def test_too_large_file_in_a_large_bucket_is_rejected_without_reading_it(
    tmp_path, monkeypatch, caplog
):
    import tensorflow as tf

    root = folder(tmp_path, splits=("train",))
    for path in root.rglob("*.jpg"):
        target = f"ram://large/{path.relative_to(root)}"
        tf.io.gfile.makedirs(os.path.dirname(target))
        with tf.io.gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes() + bytes(100_000 if path.name == "0.jpg" else 0))
    monkeypatch.setattr(storage, "_MAX_REMOTE_STATES", 1)
    # The limit of the decoders, which see the contents, stays.
    monkeypatch.setattr(indexing, "MAX_FILE_BYTES", 100_000)
    fields = {"index_dir": str(tmp_path / "index"), "max_undecodable": 0.5, "test_examples": 3}
    for _ in range(2):  # the second time from the index, which inspects rejected files again
        caplog.clear()
        assert read("ram://large", **fields).splits["train"].skipped == 3
        assert "0.jpg (more than 1,073,741,824 bytes)" in caplog.text


def test_stored_index_has_the_mode_of_the_umask(indexed):
    _, again, _, index_dir = indexed
    before = os.umask(0o002)
    try:
        again()
    finally:
        os.umask(before)
    (path,) = index_dir.iterdir()
    assert path.stat().st_mode & 0o777 == 0o664


def test_changed_read_permission_creates_a_new_index(indexed, monkeypatch):
    _, again, seen, _ = indexed
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: os.path.isdir(path))
        again()
    again()
    assert len(seen) == 2


def test_another_decoding_policy_creates_a_new_index(indexed, monkeypatch):
    _, again, seen, _ = indexed
    again()
    monkeypatch.setattr(stored_index, "POLICY_VERSION", stored_index.POLICY_VERSION + 1)
    again()
    assert len(seen) == 2


def replace(path, content):
    """Writes a file with another modification time, even if the file system's clock is coarse."""
    content.save(path)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: replace(root / "train/cat/0.jpg", make_image(31, 37)),
        lambda root: write(root, {"train/cat/9.jpg": make_image(31, 37)}),
        lambda root: (root / "train/cat/0.jpg").unlink(),
        lambda root: (root / "train/cat/0.jpg").rename(root / "train/dog/cat.jpg") and None,
        lambda root: (root / "train/dog").rename(root / "train/zebra") and None,
        lambda root: write(root, {"test/ant/1.jpg": make_image(31, 37)}),  # Changes all labels.
        lambda root: root.rename(root.with_name("moved")),
    ],
    ids=["changed", "added", "removed", "moved", "renamed class", "class of another split", "root"],
)
def test_any_change_creates_a_new_index(indexed, change):
    root, again, _, _ = indexed
    check_index(again(), root)
    root = change(root) or root
    check_index(again(root), root)


def with_array(path, name, change):
    """Changes one array of an index."""
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays | {name: change(arrays[name])})


def with_one_image_less(path):
    """Drops the last image of an index, but not its file."""
    with np.load(path) as archive:
        arrays = dict(archive)
    single = {"files", "feature"}
    np.savez(path, **{name: a if name in single else a[:-1] for name, a in arrays.items()})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an index"),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(path.read_bytes()[:700] + b"!!!" + path.read_bytes()[703:]),
        lambda path: np.savez(path, labels=np.arange(3)),
        lambda path: with_array(path, "sizes", lambda sizes: sizes[:-1]),
        lambda path: with_array(path, "labels", lambda labels: labels.astype(str)),
        lambda path: with_array(path, "file_id", lambda file_id: file_id + 1),
        lambda path: with_array(path, "sizes", np.zeros_like),
        lambda path: with_array(path, "refusal", lambda refusal: refusal + 99),
        lambda path: with_array(path, "files", lambda files: files[::-1]),
        with_one_image_less,
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=[
        "empty",
        "text",
        "cut",
        "changed",
        "another",
        "short",
        "labels",
        "files",
        "sizes",
        "refusal",
        "other",
        "less",
        "pipe",
        "dir",
    ],
)
def test_damaged_index_is_computed_again_with_a_warning(indexed, caplog, damage):
    root, again, seen, index_dir = indexed
    again()
    (path,) = index_dir.iterdir()
    damage(path)
    check_index(again(), root)
    assert len(seen) == 2 and f"cannot read the index {path}" in caplog.text
    assert list(index_dir.iterdir()) == [path]
    if not path.is_dir():
        again()
        assert len(seen) == 2


def test_index_that_cannot_be_stored_only_warns(tmp_path, caplog):
    root = write(folder(tmp_path), {"file": b""})
    check_index(read(root, index_dir=str(root / "file/index")), root)
    assert f"cannot store the index of {root}/train in {root}/file/index" in caplog.text


def test_index_that_does_not_fit_the_disk_leaves_no_file(indexed, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    root, again, _, index_dir = indexed
    monkeypatch.setattr(indexing.np, "savez", full)
    check_index(again(), root)
    assert "No space left" in caplog.text and not list(index_dir.iterdir())


def test_index_in_a_bucket_raises(tmp_path):
    with pytest.raises(ValueError, match=r"index_dir.*gs://bucket"):
        read(folder(tmp_path), index_dir="gs://bucket")


def test_index_in_an_unknown_home_folder_is_not_stored(tmp_path, caplog):
    read(folder(tmp_path), index_dir="~nobody-of-that-name/index")
    assert "~nobody-of-that-name/index" in caplog.text
