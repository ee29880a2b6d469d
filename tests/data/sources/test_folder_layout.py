"""Image folders: layouts that raise, and files that are not part of the dataset."""

import errno
import os

import pytest
from image_folders import NAMES, contents, folder, load, read
from sample_images import make_image, write

from imta_jax.data.sources.folder_layout import Listing


def test_files_with_other_extensions_are_ignored_with_a_warning(tmp_path, caplog):
    root = folder(tmp_path, each=2)
    read(root)
    assert not caplog.records
    write(root, {f"train/cat/{i}.webp": b"" for i in range(3)})
    write(root, {"train/dog/1.GIF": b"", "train/dog/README": b"", "train/dog/.DS_Store": b""})
    actual = read(root)
    assert len(actual.splits["train"].labels) == 6
    (message,) = caplog.messages
    assert "5 files" in message and f"{root}/train" in message
    assert "(3 .webp, 1 .gif, 1 no extension)" in message


def test_folder_with_the_name_of_a_tfds_dataset_is_read_with_a_warning(
    tmp_path, caplog, monkeypatch
):
    os.rename(folder(tmp_path, each=2), tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    read("./cifar10")
    assert not caplog.records
    assert read("cifar10").class_names == NAMES
    (message,) = caplog.messages
    assert f"{tmp_path}/cifar10" in message and "./cifar10" in message


def test_missing_folder_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/nowhere.*ROOT/SPLIT/CLASS"):
        read(tmp_path / "nowhere")


def test_folder_without_class_folders_raises(tmp_path):
    root = write(
        tmp_path / "flat", {"train/1.jpg": make_image(9, 9), "test/2.jpg": make_image(9, 9)}
    )
    with pytest.raises(ValueError, match=rf"{root}.*ROOT/SPLIT/CLASS"):
        read(root)


def test_folder_above_a_prepared_version_raises_with_a_hint(tmp_path):
    write(tmp_path, {"1.0.0/features.json": b"{}", "1.0.0/x-train.tfrecord-00000-of-00001": b""})
    for root in (tmp_path, tmp_path.parent):
        with pytest.raises(ValueError, match=rf"config\.data\.source .*{tmp_path}/1\.0\.0"):
            read(root)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_folders_raise(tmp_path, split):
    root = folder(tmp_path)
    (root / split / "cow").mkdir()
    write(root, {f"{split}/emu/notes.txt": b"text"})
    with pytest.raises(ValueError, match=rf"2 class folders.*{split}/cow, .*{split}/emu;"):
        read(root)


def test_hidden_files_and_folders_are_ignored(tmp_path, caplog):
    root = folder(tmp_path)
    before = contents(read(root))
    hidden = {"train/.ipynb_checkpoints/1.jpg": make_image(9, 9), "train/cat/._0.jpg": b"\0\5"}
    source = read(write(root, hidden))
    assert contents(source) == before and not any(split.skipped for split in source.splits.values())
    assert not caplog.records


def test_hidden_folder_beside_the_splits_is_ignored(tmp_path):
    root = folder(tmp_path)
    before = read(root)
    after = read(write(root, {".git/objects/1.jpg": make_image(9, 9)}))
    assert after.class_names == before.class_names and contents(after) == contents(before)


def test_other_files_do_not_change_the_splits(tmp_path):
    root = folder(tmp_path)
    before = contents(read(root))
    write(root, {"a.txt": b"", "train/a.jpg": b"", "train/cat/a.txt": b"", "test/owl/a.gif": b""})
    source = read(root)
    assert contents(source) == before and not any(split.skipped for split in source.splits.values())


def test_images_at_other_levels_are_counted_and_logged(tmp_path, caplog):
    root = folder(tmp_path)
    names = ["0.jpg", "train/1.jpg", "train/2.png", "val/3.jpg", "train/cat/sub/deep/4.jpg"]
    source = read(write(root, {name: make_image(9, 9) for name in names}))
    assert [(images.folder, images.count) for images in source.misplaced] == [
        (str(root), 1),
        (f"{root}/train", 2),
        (f"{root}/val", 1),
        (f"{root}/train/CLASS/FOLDER", 1),
    ]
    assert f"2 images in {root}/train" in caplog.text and f"{root}/val/CLASS" in caplog.text


def test_names_without_the_suffix_of_an_image_are_counted_by_suffix(tmp_path):
    root = folder(tmp_path)
    names = [
        "train/cat/a.webp",
        "train/dog/b.WEBP",
        "train/dog/c.jfif",
        "train/owl/d",
        "test/cat/e",
    ]
    write(root, dict.fromkeys(names, b"image"))
    findings = load(root).findings.to_dict()
    assert findings["ignored"] == [
        [f"{root}/train", {".webp": 2, ".jfif": 1, "no extension": 1}],
        [f"{root}/test", {"no extension": 1}],
    ]


def test_folder_of_class_folders_raises_with_the_flags_that_read_it(tmp_path):
    root = write(tmp_path / "pets", {f"{name}/1.jpg": make_image(9, 9) for name in NAMES})
    with pytest.raises(
        ValueError, match=rf"source={tmp_path} .*train_split=pets .*hold_out"
    ) as error:
        read(root)
    assert "config.data.test_examples" in str(error.value)
    parts = {"validation_split": "hold_out", "test_split": "hold_out", "test_examples": 3}
    write(root, {f"{name}/{i}.jpg": make_image(9, 9, i) for name in NAMES for i in range(4)})
    assert read(tmp_path, train_split="pets", **parts).class_names == NAMES


def test_folder_above_the_dataset_raises_with_its_path(tmp_path):
    root = folder(tmp_path)
    with pytest.raises(ValueError, match=rf"config\.data\.source={root}"):
        read(tmp_path)


@pytest.fixture
def forbid(monkeypatch):
    """A function that takes the read and execute permissions of a folder, also from root."""
    access, listdir, stat = os.access, os.listdir, os.stat

    def forbid(folder, *, may_list=False):
        def inside(path):
            return os.fsdecode(path).startswith(f"{folder}/")

        def reject(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)

        def is_rejected(path):
            return inside(path) or os.fsdecode(path) == str(folder)

        monkeypatch.setattr(os, "access", lambda p, mode: not is_rejected(p) and access(p, mode))
        monkeypatch.setattr(os, "stat", lambda p, **o: reject(p) if inside(p) else stat(p, **o))
        if not may_list:
            monkeypatch.setattr(
                os, "listdir", lambda p: reject(p) if is_rejected(p) else listdir(p)
            )

    return forbid


def test_unreadable_folder_that_no_split_uses_is_a_warning(tmp_path, caplog, forbid):
    root = folder(tmp_path, each=2)
    (root / "zzz").mkdir()
    forbid(root / "zzz")
    assert set(read(root).splits) == {"train", "test"}
    assert f"{root}/zzz" in caplog.text and "permission denied" in caplog.text


@pytest.mark.parametrize(
    ("name", "fields"),
    [("test", {}), ("val", {}), ("mine", {"validation_split": "mine"}), ("train/dog", {})],
)
@pytest.mark.parametrize("may_list", [False, True])
def test_unreadable_folder_that_is_used_raises_with_the_fix(
    tmp_path, forbid, name, fields, may_list
):
    root = folder(tmp_path, each=2)
    (root / name).mkdir(exist_ok=True)
    forbid(root / name, may_list=may_list)
    with pytest.raises(PermissionError, match=rf"{root}/{name}: permission denied; .*chmod u\+rx"):
        read(root, **fields)


def test_images_in_splits_that_are_not_used_are_counted(tmp_path, caplog):
    root = folder(tmp_path, each=2)
    write(root, {"other/x/y/z.png": make_image(8, 8), "val/cat/1.png": make_image(8, 8)})
    source = read(root, validation_split="hold_out")
    assert [(images.folder, images.count) for images in source.misplaced] == [
        (f"{root}/other/FOLDER", 1),
        (f"{root}/val/FOLDER", 1),
    ]
    assert (
        f"1 images in {root}/val/FOLDER; to read them, set config.data.train_split" in caplog.text
    )


def test_paths_below_the_root_of_the_file_system_have_one_slash():
    assert Listing("/", [], []).child("data") == "/data"
    assert Listing("/data", [], []).child("train") == "/data/train"


def test_unreadable_folders_do_not_hide_the_advice_to_choose_a_dataset_below(tmp_path, forbid):
    root = folder(tmp_path / "all")
    (tmp_path / "all/etc/a").mkdir(parents=True)
    forbid(tmp_path / "all/etc/a")
    with pytest.raises(ValueError, match=rf"config\.data\.source={root}"):
        read(tmp_path / "all")
