"""Image folders as a source: classes, splits, invalid files, arrays, and the stored index."""

import os

import numpy as np
import pytest
from PIL import Image
from sample_images import config, make_image, write

from imta_jax.data import EncodedImages, load_dataset
from imta_jax.data.pipeline import indexing
from imta_jax.data.sources import SourceRequest, load_source
from imta_jax.data.sources.storage import FileState, file_states

RANDOM_AREA_CROP = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28}
NAMES = ("cat", "dog", "owl")


def folder(root, splits=("train", "test"), names=NAMES, each=4, extension="jpg", size=(40, 48)):
    """Writes `each` different images per class in each split."""
    many = [(split, name, i) for split in splits for name in names for i in range(each)]
    files = {
        f"{s}/{n}/{i}.{extension}": make_image(*size, seed) for seed, (s, n, i) in enumerate(many)
    }
    return write(root / "pets", files)


def load(root, **changes):
    return load_dataset(config(root, **{**RANDOM_AREA_CROP, **changes}))


def read(root, **changes):
    """The splits of the source, without held-out images and statistics, which is faster."""
    fields = config(root, **{**RANDOM_AREA_CROP, **changes})
    return load_source(SourceRequest.from_config(fields, encoded=True))


def paths(split):
    return [split.images.name(i) for i in range(len(split.labels))]


def contents(data):
    """Path, label, size and format of every image, for comparisons."""
    return {
        name: (paths(s), s.labels.tolist(), s.images.sizes.tolist(), s.images.is_jpeg.tolist())
        for name, s in data.splits.items()
    }


def check_labels(split, class_names):
    assert [path.split("/")[-2] for path in paths(split)] == [class_names[k] for k in split.labels]


def scans(monkeypatch):
    """A list with one entry per pass over the images."""
    seen, collect = [], indexing.collect
    monkeypatch.setattr(indexing, "collect", lambda *args: (seen.append(args), collect(*args))[1])
    return seen


# Classes and splits


def test_classes_and_labels_are_those_of_image_folder(tmp_path):
    import tensorflow_datasets as tfds

    root = folder(tmp_path, splits=("train", "val", "test"))
    os.rename(root / "val/owl", root / "val/ant")
    os.rename(root / "test/dog/0.jpg", root / "test/dog/0.JPEG")
    dataset = load(root)
    builder = tfds.folder_dataset.ImageFolder(str(root))
    label = builder.info.features["label"]
    assert dataset.class_names == tuple(label.names) == ("ant", "cat", "dog", "owl")
    assert dataset.num_classes == 4 and dataset.name == "pets"
    for part, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        found = dict(zip(paths(dataset.splits[part]), dataset.splits[part].labels, strict=True))
        examples = builder._split_examples[split]
        assert found == {e.image_path: label.str2int(e.label) for e in examples}


def test_class_names_may_contain_any_characters(tmp_path):
    names = {
        "naïve café",
        "日本",
        "100%",
        "[ab]",
        "*",
        "$HOME",
        "~",
        "a'b",
        "two\nlines",
        "-",
        "%s{0}",
    }
    dataset = load(folder(tmp_path, names=names, each=2), validation_examples=len(names))
    assert dataset.class_names == tuple(sorted(names)) and not any(dataset.skipped.values())
    for split in dataset.splits.values():
        check_labels(split, dataset.class_names)


def test_held_out_validation_is_stratified_reproducible_and_disjoint(tmp_path):
    root = folder(tmp_path, each=8)
    one, same = (load(root, validation_examples=6) for _ in range(2))
    other = load(root, validation_examples=6, validation_seed=1)
    assert contents(one) == contents(same)
    train, validation = (one.splits[name] for name in ("train", "validation"))
    assert np.bincount(validation.labels).tolist() == [2, 2, 2]
    assert set(paths(train)).isdisjoint(paths(validation))
    assert len(set(paths(train)) | set(paths(validation))) == 24
    assert set(paths(validation)) != set(paths(other.splits["validation"]))
    for split in (train, validation):
        assert all("/train/" in path for path in paths(split))
    assert sorted([*train.source_index, *validation.source_index]) == list(range(24))


@pytest.mark.parametrize("name", ["valid", "val"])
def test_existing_validation_split_is_used(tmp_path, name):
    dataset = load(folder(tmp_path, splits=("train", name, "test")))
    assert {part: len(split) for part, split in dataset.splits.items()} == {
        "train": 12,
        "validation": 12,
        "test": 12,
    }
    assert all(f"/{name}/" in path for path in paths(dataset.splits["validation"]))


def test_validation_split_is_the_test_split_if_there_is_no_other(tmp_path):
    dataset = load(folder(tmp_path, splits=("train", "val")))
    assert all("/val/" in path for path in paths(dataset.splits["test"]))
    assert all("/train/" in path for path in paths(dataset.splits["validation"]))


def test_splits_can_be_named_and_held_out(tmp_path):
    root = folder(tmp_path, splits=("part 1", "part 2", "val"))
    named = {"train_split": "part 2", "test_split": "part 1"}
    dataset = load(root, validation_split="carve", **named)
    parts = {name: {p.split("/")[-3] for p in paths(s)} for name, s in dataset.splits.items()}
    assert parts == {"train": {"part 2"}, "validation": {"part 2"}, "test": {"part 1"}}


def test_folder_without_test_split_requires_test_examples(tmp_path):
    root = folder(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match=r"test_split.*test_examples"):
        load(root)
    dataset = load(root, test_examples=3, validation_examples=3)
    assert [len(dataset.splits[name]) for name in ("train", "validation", "test")] == [6, 3, 3]
    assert len({path for split in dataset.splits.values() for path in paths(split)}) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_split": "trian"},
            r"config\.data\.train_split.*'trian'.*: train, val, test",
        ),
        ({"test_split": "tset"}, r"config\.data\.test_split.*'tset'.*: test, "),
        ({"validation_split": "vali"}, r"config\.data\.validation_split.*'vali'.*: val, "),
        ({"test_split": "train"}, "test_split.*train_split.*'train'"),
        ({"validation_split": "test"}, "validation_split.*test_split.*'test'"),
        ({"test_examples": 2, "test_split": "carve"}, "test_examples.*2.*3"),
    ],
)
def test_invalid_splits_raise(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path, splits=("train", "val", "test"), each=1), **change)


# Files that are not images


def test_files_with_other_extensions_are_ignored_with_a_warning(tmp_path, caplog):
    root = folder(tmp_path, each=2)
    read(root)
    assert not caplog.records
    write(root, {f"train/cat/{i}.webp": b"" for i in range(3)})
    write(root, {"train/dog/1.GIF": b"", "train/dog/README": b"", "train/dog/.DS_Store": b""})
    found = read(root)
    assert len(found.splits["train"].labels) == 6
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
    with pytest.raises(ValueError, match=r"features\.json"):
        read(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_folders_raise(tmp_path, split):
    root = folder(tmp_path)
    (root / split / "cow").mkdir()
    write(root, {f"{split}/emu/notes.txt": b"soon"})
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


def broken(root):
    """Writes images that do not decode, three in each of two classes."""
    whole = (root / "train/cat/0.jpg").read_bytes()
    png = write(root, {"train/cat/a.png": make_image(40, 48)}) / "train/cat/a.png"
    contents = {
        "train/cat/cut short.jpg": whole[: len(whole) // 2],
        "train/cat/empty.jpg": b"",
        "train/cat/cut short.png": png.read_bytes()[:-200],
        "train/dog/text.jpg": b"not an image",
        "train/dog/header only.jpeg": whole[:20],
    }
    write(root, contents)
    os.symlink(root / "nowhere", root / "train/dog/link to nowhere.jpg")
    return {*contents, "train/dog/link to nowhere.jpg"}


def test_undecodable_images_are_skipped_counted_and_logged(tmp_path, caplog):
    root = folder(tmp_path)
    names = broken(root)
    dataset = load(root, max_undecodable=0.5)
    assert dataset.skipped == {"train": 6, "test": 0}
    found = paths(dataset.splits["train"]) + paths(dataset.splits["validation"])
    assert len(found) == 13 and not {str(root / name) for name in names} & set(found)
    assert f"6 of 19 images of {root}/train cannot be used" in caplog.text
    assert "they are left out" in caplog.text
    for name in names:
        assert str(root / name) in caplog.text


def test_broken_links_and_folders_are_logged_as_such(tmp_path, caplog):
    root = folder(tmp_path)
    first = next((root / "train").iterdir())
    (first / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (first / "folder.jpg").mkdir()
    read(root, max_undecodable=1)
    for name in ("link.jpg", "folder.jpg"):
        assert f"{first / name} (not a regular file)" in caplog.text


def test_too_many_undecodable_images_raise(tmp_path):
    root = folder(tmp_path)
    broken(root)
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
    with pytest.raises(ValueError, match="test has 0 images"):
        read(root, max_undecodable=1)


def test_folder_named_like_an_image_and_link_to_itself_are_skipped(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/x.jpg").mkdir()
    os.symlink("loop.jpg", root / "train/cat/loop.jpg")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 2


def test_pipes_are_left_out_without_opening_them(tmp_path, caplog):
    root = folder(tmp_path)
    os.mkfifo(root / "train/cat/pipe.jpg")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    assert "pipe.jpg (not a regular file)" in caplog.text


def test_only_the_splits_that_are_used_define_classes(tmp_path):
    root = write(folder(tmp_path), {"annotations/xmls/a.xml": b"<a/>", "old/emu/1.jpg": b""})
    assert read(root).class_names == NAMES


def test_images_at_other_levels_are_counted_and_logged(tmp_path, caplog):
    root = folder(tmp_path)
    names = ["0.jpg", "train/1.jpg", "train/2.png", "val/3.jpg", "train/cat/sub/deep/4.jpg"]
    source = read(write(root, {name: make_image(9, 9) for name in names}))
    assert [(one.where, one.count) for one in source.misplaced] == [
        (str(root), 1),
        (f"{root}/train", 2),
        (f"{root}/val", 1),
        (f"{root}/train/CLASS/FOLDER", 1),
    ]
    assert "ignoring 2 images in " in caplog.text and f"{root}/val/CLASS" in caplog.text


def test_folder_of_class_folders_raises_with_the_flags_that_read_it(tmp_path):
    root = write(tmp_path / "pets", {f"{name}/1.jpg": make_image(9, 9) for name in NAMES})
    with pytest.raises(ValueError, match=rf"source={tmp_path} .*train_split=pets .*carve") as error:
        read(root)
    assert "config.data.test_examples" in str(error.value)
    parts = {"validation_split": "carve", "test_split": "carve", "test_examples": 3}
    write(root, {f"{name}/{i}.jpg": make_image(9, 9, i) for name in NAMES for i in range(4)})
    assert read(tmp_path, train_split="pets", **parts).class_names == NAMES


def test_folder_above_the_dataset_raises_with_its_path(tmp_path):
    root = folder(tmp_path)
    with pytest.raises(ValueError, match=rf"config\.data\.source={root}"):
        read(tmp_path)


def test_unreadable_file_is_skipped_and_unreadable_folder_raises(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/0.jpg").chmod(0)
    if os.access(root / "train/cat/0.jpg", os.R_OK):
        pytest.skip("root may read every file")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    (root / "train/dog").chmod(0)
    with pytest.raises(PermissionError, match=r"cannot read .*pets"):
        read(root, max_undecodable=0.5)
    (root / "train/dog").chmod(0o700)


def test_name_that_is_not_utf_8_raises(tmp_path):
    root = folder(tmp_path)
    os.rename(root / "train/cat/0.jpg", os.fsencode(root / "train/cat") + b"/\xff\xfe.jpg")
    with pytest.raises(ValueError, match=r"pets.*UTF-8.*xff.xfe\.jpg"):
        read(root)


def test_links_to_files_and_folders_are_followed(tmp_path):
    root = folder(tmp_path, names=("cat", "dog"))
    elsewhere = write(tmp_path / "elsewhere", {f"{i}.jpg": make_image(30, 50, i) for i in range(3)})
    for split in ("train", "test"):
        os.symlink(elsewhere, root / split / "owl")
        os.symlink(elsewhere / "0.jpg", root / split / "cat/linked.jpg")
    dataset = load(root)
    assert dataset.class_names == NAMES and not any(dataset.skipped.values())
    test = dataset.splits["test"]
    assert np.bincount(test.labels).tolist() == [5, 4, 3]
    sizes = {path: size.tolist() for path, size in zip(paths(test), test.sizes, strict=True)}
    assert sizes[f"{root}/test/cat/linked.jpg"] == sizes[f"{root}/test/owl/2.jpg"] == [30, 50]


# Small images of one size


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_png_folder_becomes_the_arrays_that_pillow_decodes(tmp_path, mode):
    root = folder(tmp_path, extension="png", size=(16, 24))
    for path in root.glob("*/*/*.png"):
        with Image.open(path) as image:
            converted = image.convert(mode)
        converted.save(path)
    dataset = load(root, preprocessing="padded_crop")
    assert dataset.image_shape == (16, 24, 3)
    test = dataset.splits["test"]
    assert isinstance(test.images, np.ndarray) and test.images.dtype == np.uint8
    files = [root / f"test/{name}/{i}.png" for name in NAMES for i in range(4)]
    expected = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
    np.testing.assert_array_equal(test.images, expected)
    assert test.labels.tolist() == [k for k in range(3) for _ in range(4)]


def test_jpeg_folder_becomes_the_arrays_that_pillow_decodes(tmp_path):
    root = folder(tmp_path)
    dataset = load(root, preprocessing="padded_crop")
    files = [root / f"test/{name}/{i}.jpg" for name in NAMES for i in range(4)]
    expected = np.stack([np.asarray(Image.open(path)) for path in files]).astype(int)
    assert np.abs(dataset.splits["test"].images - expected).max() <= 1


def test_images_of_one_size_are_padded_like_arrays(tmp_path):
    dataset = load(folder(tmp_path, size=(21, 30)), preprocessing="padded_crop")
    assert dataset.image_shape == (24, 32, 3)
    assert not dataset.splits["train"].images[:, [0, -1, -2]].any()


def test_skipped_images_leave_no_gap_in_the_arrays(tmp_path):
    root = folder(tmp_path, extension="png", size=(16, 24))
    write(root, {"test/cat/2.png": b"text"})
    dataset = load(root, preprocessing="padded_crop", max_undecodable=0.2)
    test, files = dataset.splits["test"], sorted(root.glob("test/*/*.png"))
    del files[2]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(test.images, [np.asarray(Image.open(path)) for path in files])


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_different_sizes_raise_with_padded_crop(tmp_path, split):
    root = write(folder(tmp_path), {f"{split}/dog/9.jpg": make_image(40, 50)})
    message = rf"{split}/dog/9\.jpg.*\[40, 50\].*{split}/cat/0\.jpg.*\[40, 48\].*random_area_crop"
    with pytest.raises(ValueError, match=message):
        load(root, preprocessing="padded_crop")


def test_splits_of_different_sizes_raise_with_padded_crop(tmp_path):
    root = folder(tmp_path, splits=("train",))
    folder(tmp_path, splits=("test",), size=(32, 32))
    with pytest.raises(ValueError, match=r"test images.*\(32, 32, 3\).*\(40, 48, 3\)"):
        load(root, preprocessing="padded_crop")


# Encoded images


def test_images_stay_encoded_with_their_sizes_and_formats(tmp_path):
    root = folder(tmp_path)
    write(root, {"train/owl/p.png": make_image(50, 60), "train/owl/BIG.JPEG": make_image(70, 33)})
    # The format is that of the contents, not that of the name.
    make_image(20, 30).save(root / "train/owl/actually png.jpg", format="png")
    dataset = load(root)
    assert dataset.image_shape == (24, 24, 3)
    found = {}
    for name in ("train", "validation"):
        split = dataset.splits[name]
        assert isinstance(split.images, EncodedImages)
        found |= zip(
            paths(split), zip(split.sizes.tolist(), split.images.is_jpeg, strict=True), strict=True
        )
    assert len(found) == 15
    for path, (size, is_jpeg) in found.items():
        with Image.open(path) as image:
            assert size == [image.height, image.width] and is_jpeg == (image.format == "JPEG")


# The stored index


def check(source, root):
    """Compares the splits with the paths and with Pillow."""
    seen = [path for split in source.splits.values() for path in paths(split)]
    assert sorted(seen) == sorted(str(path) for path in root.glob("*/*/*.jpg"))
    for split in source.splits.values():
        check_labels(split, source.class_names)
        for path, size in zip(paths(split), split.images.sizes.tolist(), strict=True):
            with Image.open(path) as image:
                assert size == [image.height, image.width]


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A folder, a function that reads it with an index, and the passes over its images."""
    root, seen = folder(tmp_path, splits=("train",)), scans(monkeypatch)
    index_dir = tmp_path / "index"
    fields = {"index_dir": str(index_dir), "max_undecodable": 0.5, "test_examples": 3}
    return root, lambda at=root: read(at, **fields), seen, index_dir


def test_second_load_reads_no_image_and_returns_the_same(indexed):
    root, again, seen, index_dir = indexed
    broken(root)
    first = again()
    assert len(seen) == 1 and len(list(index_dir.iterdir())) == 1
    second = again()
    assert len(seen) == 1
    assert contents(first) == contents(second) and second.splits["train"].skipped == 6


def test_refused_images_are_read_again_at_each_load(indexed, monkeypatch, caplog):
    root, again, seen, index_dir = indexed
    path = root / "train/cat/0.jpg"
    content = path.read_bytes()
    monkeypatch.setattr("imta_jax.data.sources.folder.file_states", unknown_states)
    path.write_bytes(content[:300])
    assert again().splits["train"].skipped == 1 and again().splits["train"].skipped == 1
    assert str(index_dir) in caplog.text
    path.write_bytes(content)
    check(again(), root)
    assert len(seen) == 1 and again().splits["train"].skipped == 0


def unknown_states(paths):
    """States in a file system without sizes and modification times."""
    return [FileState(0, 0, True, True)] * len(paths)


def test_files_in_a_remote_file_system_have_sizes_and_times(tmp_path):
    import tensorflow as tf

    with tf.io.gfile.GFile("ram://states/a.jpg", "w") as file:
        file.write("1234")
    (found, missing) = file_states(["ram://states/a.jpg", "ram://states/b.jpg"])
    assert found.size == 4 and found.regular and found.readable
    assert missing == FileState(0, 0, True, True)


def test_replaced_file_in_a_remote_file_system_makes_a_new_index(tmp_path, caplog):
    import tensorflow as tf

    root = folder(tmp_path, splits=("train",))
    for path in root.rglob("*.jpg"):
        target = f"ram://pets/{path.relative_to(root)}"
        tf.io.gfile.makedirs(os.path.dirname(target))
        with tf.io.gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes()[: 300 if path.name == "0.jpg" else None])
    fields = {"index_dir": str(tmp_path / "index"), "max_undecodable": 0.5, "test_examples": 3}
    assert read("ram://pets", **fields).splits["train"].skipped == 3
    tf.io.gfile.remove("ram://pets/train/cat/0.jpg")  # ram:// would append
    with tf.io.gfile.GFile("ram://pets/train/cat/0.jpg", "wb") as file:
        file.write((root / "train/cat/0.jpg").read_bytes())
    assert read("ram://pets", **fields).splits["train"].skipped == 2


def test_stored_index_has_the_mode_of_the_umask(indexed):
    _, again, _, index_dir = indexed
    before = os.umask(0o002)
    try:
        again()
    finally:
        os.umask(before)
    (path,) = index_dir.iterdir()
    assert path.stat().st_mode & 0o777 == 0o664


def test_changed_read_permission_makes_a_new_index(indexed, monkeypatch):
    _, again, seen, _ = indexed
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        again()
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
        lambda root: write(root, {"test/ant/1.jpg": make_image(31, 37)}),  # changes all labels
        lambda root: root.rename(root.with_name("moved")),
    ],
    ids=["changed", "added", "removed", "moved", "renamed class", "class of another split", "root"],
)
def test_any_change_makes_a_new_index(indexed, change):
    root, again, _, _ = indexed
    check(again(), root)
    root = change(root) or root
    check(again(root), root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an index"),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(path.read_bytes()[:700] + b"!!!" + path.read_bytes()[703:]),
        lambda path: np.savez(path, labels=np.arange(3)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "text", "cut short", "changed", "another", "folder"],
)
def test_damaged_index_is_computed_again_with_a_warning(indexed, caplog, damage):
    root, again, seen, index_dir = indexed
    again()
    (path,) = index_dir.iterdir()
    damage(path)
    check(again(), root)
    assert len(seen) == 2 and f"cannot read the index {path}" in caplog.text
    assert list(index_dir.iterdir()) == [path]
    if not path.is_dir():
        again()
        assert len(seen) == 2


def test_index_that_cannot_be_stored_only_warns(tmp_path, caplog):
    root = write(folder(tmp_path), {"file": b""})
    check(read(root, index_dir=str(root / "file/index")), root)
    assert f"cannot store the index of {root}/train in {root}/file/index" in caplog.text


def test_index_that_does_not_fit_the_disk_leaves_no_file(indexed, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    root, again, _, index_dir = indexed
    monkeypatch.setattr(indexing.np, "savez", full)
    check(again(), root)
    assert "No space left" in caplog.text and not list(index_dir.iterdir())


def test_index_in_a_bucket_raises(tmp_path):
    with pytest.raises(ValueError, match=r"index_dir.*gs://bucket"):
        read(folder(tmp_path), index_dir="gs://bucket")


def test_index_in_an_unknown_home_folder_is_not_stored(tmp_path, caplog):
    read(folder(tmp_path), index_dir="~nobody-of-that-name/index")
    assert "~nobody-of-that-name/index" in caplog.text
