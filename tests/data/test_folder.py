"""Folders of pictures as a source: classes, splits, bad files, arrays, and the kept index."""

import os

import numpy as np
import pytest
from PIL import Image
from sample_images import config, picture, write

from imta_jax.data import EncodedImages, load_dataset
from imta_jax.data.pipeline import indexing
from imta_jax.data.sources import SourceRequest, load_source

PHOTOGRAPHS = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28}
NAMES = ("cat", "dog", "owl")


def folder(root, splits=("train", "test"), names=NAMES, each=4, ending="jpg", size=(40, 48)):
    """`each` pictures per class in each split, every one another picture."""
    many = [(split, name, i) for split in splits for name in names for i in range(each)]
    pictures = {
        f"{s}/{n}/{i}.{ending}": picture(*size, seed) for seed, (s, n, i) in enumerate(many)
    }
    return write(root / "pets", pictures)


def load(root, **changes):
    return load_dataset(config(root, **{**PHOTOGRAPHS, **changes}))


def read(root, **changes):
    """The splits as they are found, with nothing held out and no statistics: faster."""
    fields = config(root, **{**PHOTOGRAPHS, **changes})
    return load_source(SourceRequest.from_config(fields, encoded=True))


def paths(split):
    return [split.images.name(i) for i in range(len(split.labels))]


def facts(data):
    """All that is known of every image, for a comparison."""
    return {
        name: (paths(s), s.labels.tolist(), s.images.sizes.tolist(), s.images.is_jpeg.tolist())
        for name, s in data.splits.items()
    }


def check_labels(split, class_names):
    assert [path.split("/")[-2] for path in paths(split)] == [class_names[k] for k in split.labels]


def scans(monkeypatch):
    """A list that grows by one with each pass over the images."""
    seen, collect = [], indexing._collect
    monkeypatch.setattr(indexing, "_collect", lambda *args: (seen.append(args), collect(*args))[1])
    return seen


# Classes and splits


def test_classes_and_labels_are_those_of_image_folder(tmp_path):
    import tensorflow_datasets as tfds

    root = folder(tmp_path, splits=("train", "val", "test", "extra"))
    os.rename(root / "extra/owl", root / "extra/ant")
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


def test_class_names_may_hold_any_characters(tmp_path):
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


def test_validation_is_carved_stratified_reproducible_and_disjoint(tmp_path):
    root = folder(tmp_path, each=8)
    one, same = (load(root, validation_examples=6) for _ in range(2))
    other = load(root, validation_examples=6, validation_seed=1)
    assert facts(one) == facts(same)
    train, validation = (one.splits[name] for name in ("train", "validation"))
    assert np.bincount(validation.labels).tolist() == [2, 2, 2]
    assert set(paths(train)).isdisjoint(paths(validation))
    assert len(set(paths(train)) | set(paths(validation))) == 24
    assert set(paths(validation)) != set(paths(other.splits["validation"]))
    for split in (train, validation):
        assert all("/train/" in path for path in paths(split))
    assert sorted([*train.source_index, *validation.source_index]) == list(range(24))


@pytest.mark.parametrize("name", ["valid", "val"])
def test_validation_split_that_is_there_is_used(tmp_path, name):
    dataset = load(folder(tmp_path, splits=("train", name, "test")))
    assert {part: len(split) for part, split in dataset.splits.items()} == {
        "train": 12,
        "validation": 12,
        "test": 12,
    }
    assert all(f"/{name}/" in path for path in paths(dataset.splits["validation"]))


def test_validation_split_tests_where_no_other_does(tmp_path):
    dataset = load(folder(tmp_path, splits=("train", "val")))
    assert all("/val/" in path for path in paths(dataset.splits["test"]))
    assert all("/train/" in path for path in paths(dataset.splits["validation"]))


def test_splits_can_be_named_and_carved(tmp_path):
    root = folder(tmp_path, splits=("part 1", "part 2", "val"))
    named = {"train_split": "part 2", "test_split": "part 1"}
    dataset = load(root, validation_split="carve", **named)
    parts = {name: {p.split("/")[-3] for p in paths(s)} for name, s in dataset.splits.items()}
    assert parts == {"train": {"part 2"}, "validation": {"part 2"}, "test": {"part 1"}}


def test_folder_with_training_pictures_only_needs_test_examples(tmp_path):
    root = folder(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match=r"no split to test with, only: train; .*test_examples"):
        load(root)
    dataset = load(root, test_examples=3, validation_examples=3)
    assert [len(dataset.splits[name]) for name in ("train", "validation", "test")] == [6, 3, 3]
    assert len({path for split in dataset.splits.values() for path in paths(split)}) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_split": "trian"},
            r"no split 'trian' \(config.data.train_split\).*: train, val, test",
        ),
        ({"test_split": "tset"}, r"no split 'tset' \(config.data.test_split\), .* first: test, "),
        ({"validation_split": "vali"}, r"'vali' \(config.data.validation_split\), .* first: val, "),
        ({"test_split": "train"}, "test_split and config.data.train_split are both 'train'"),
        ({"validation_split": "test"}, "validation_split and config.data.test_split are both 'te"),
        ({"test_examples": 2, "test_split": "carve"}, "test_examples is 2, expected at least 3"),
    ],
)
def test_impossible_splits_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path, splits=("train", "val", "test"), each=1), **change)


# What is no picture


def test_files_of_other_endings_are_counted_and_told(tmp_path, caplog):
    root = folder(tmp_path, each=2)
    read(root)
    assert not caplog.records
    write(root, {f"train/cat/{i}.webp": b"" for i in range(3)})
    write(root, {"train/dog/1.GIF": b"", "train/dog/README": b"", "train/dog/.DS_Store": b""})
    found = read(root)
    assert len(found.splits["train"].labels) == 6
    (told,) = caplog.messages
    assert f"5 files or folders in the class folders of {root}/train" in told
    assert "(3 .webp, 1 .gif, 1 no ending): only .jpg, .jpeg, .png are read" in told


def test_a_folder_named_like_a_dataset_is_read_and_told(tmp_path, caplog, monkeypatch):
    os.rename(folder(tmp_path, each=2), tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    read("./cifar10")
    assert not caplog.records
    assert read("cifar10").class_names == NAMES
    (told,) = caplog.messages
    assert f"'cifar10' is read as the folder {tmp_path}/cifar10" in told and "./cifar10" in told


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"no folder {tmp_path}/nowhere; expected ROOT/SPL"
    ):
        read(tmp_path / "nowhere")


def test_folder_without_classes_is_refused(tmp_path):
    root = write(tmp_path / "flat", {"train/1.jpg": picture(9, 9), "test/2.jpg": picture(9, 9)})
    with pytest.raises(
        ValueError, match=rf"{root} holds no pictures in folders of classes; expecte"
    ):
        read(root)


def test_folder_above_a_prepared_version_is_told_where_to_look(tmp_path):
    write(tmp_path, {"1.0.0/features.json": b"{}", "1.0.0/x-train.tfrecord-00000-of-00001": b""})
    with pytest.raises(ValueError, match=r"or the folder with the features.json of a version that"):
        read(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_folders_are_named(tmp_path, split):
    root = folder(tmp_path)
    (root / split / "cow").mkdir()
    write(root, {f"{split}/emu/notes.txt": b"soon"})
    with pytest.raises(ValueError, match=rf"2 class folders hold no .*{split}/cow, .*{split}/emu;"):
        read(root)


def test_hidden_class_folder_is_refused(tmp_path):
    root = write(folder(tmp_path), {"train/.ipynb_checkpoints/1.jpg": picture(9, 9)})
    with pytest.raises(ValueError, match=r"would become a class: .*/\.ipynb_checkpoints; remove"):
        read(root)


def test_hidden_folder_beside_the_splits_is_none(tmp_path):
    root = folder(tmp_path)
    before = read(root)
    after = read(write(root, {".git/objects/1.jpg": picture(9, 9)}))
    assert after.class_names == before.class_names and facts(after) == facts(before)


def test_other_files_are_ignored(tmp_path):
    root = folder(tmp_path)
    before = facts(read(root))
    write(root, {"a.txt": b"", "train/a.jpg": b"", "train/cat/a.txt": b"", "test/owl/a.gif": b""})
    raw = read(root)
    assert facts(raw) == before and not any(split.skipped for split in raw.splits.values())


def broken(root):
    """Pictures that cannot be read, three in each of two classes."""
    whole = (root / "train/cat/0.jpg").read_bytes()
    png = write(root, {"train/cat/a.png": picture(40, 48)}) / "train/cat/a.png"
    contents = {
        "train/cat/cut short.jpg": whole[: len(whole) // 2],
        "train/cat/empty.jpg": b"",
        "train/cat/cut short.png": png.read_bytes()[:-200],
        "train/dog/text.jpg": b"no picture at all",
        "train/dog/header only.jpeg": whole[:20],
    }
    write(root, contents)
    os.symlink(root / "nowhere", root / "train/dog/link to nowhere.jpg")
    return {*contents, "train/dog/link to nowhere.jpg"}


def test_pictures_that_do_not_decode_are_skipped_counted_and_named(tmp_path, caplog):
    root = folder(tmp_path)
    names = broken(root)
    dataset = load(root, max_undecodable=0.5)
    assert dataset.skipped == {"train": 6, "test": 0}
    found = paths(dataset.splits["train"]) + paths(dataset.splits["validation"])
    assert len(found) == 13 and not {str(root / name) for name in names} & set(found)
    assert f"6 of 19 images of {root}/train do not decode" in caplog.text
    assert "they are skipped" in caplog.text
    for name in names:
        assert str(root / name) in caplog.text


def test_links_that_lead_nowhere_and_folders_are_named_as_such(tmp_path, caplog):
    root = folder(tmp_path)
    first = next((root / "train").iterdir())
    (first / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (first / "folder.jpg").mkdir()
    read(root, max_undecodable=1)
    for name in ("link.jpg", "folder.jpg"):
        assert f"{first / name} (a folder, or a link that leads to no file)" in caplog.text


def test_too_many_that_do_not_decode_are_an_error(tmp_path):
    root = folder(tmp_path)
    broken(root)
    with pytest.raises(ValueError, match=r"6 of 19 .*more than config.data.max_undecodable, 0.3 o"):
        load(root, max_undecodable=0.3)
    assert read(root, max_undecodable=6 / 19).splits["train"].skipped == 6


def test_only_ten_of_many_that_do_not_decode_are_named(tmp_path, caplog):
    root = write(folder(tmp_path), {f"train/cat/text {i:02}.jpg": b"text" for i in range(13)})
    read(root, max_undecodable=1)
    assert "text 09.jpg and 3 more" in caplog.text and "text 10.jpg" not in caplog.text


def test_split_of_which_nothing_decodes_is_refused(tmp_path):
    root = write(folder(tmp_path, splits=("train",)), {"test/cat/1.jpg": b"text"})
    with pytest.raises(ValueError, match="test has no image"):
        read(root, max_undecodable=1)


def test_folder_named_like_a_picture_and_a_link_to_itself_are_skipped(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/x.jpg").mkdir()
    os.symlink("loop.jpg", root / "train/cat/loop.jpg")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 2


def test_file_that_may_not_be_read_is_skipped_and_such_a_folder_an_error(tmp_path):
    root = folder(tmp_path)
    (root / "train/cat/0.jpg").chmod(0)
    if os.access(root / "train/cat/0.jpg", os.R_OK):
        pytest.skip("root may read every file")
    assert read(root, max_undecodable=0.5).splits["train"].skipped == 1
    (root / "train/dog").chmod(0)
    with pytest.raises(PermissionError, match=r"cannot read .*pets"):
        read(root, max_undecodable=0.5)
    (root / "train/dog").chmod(0o700)


def test_name_that_is_not_utf_8_is_told(tmp_path):
    root = folder(tmp_path)
    os.rename(root / "train/cat/0.jpg", os.fsencode(root / "train/cat") + b"/\xff\xfe.jpg")
    with pytest.raises(ValueError, match=r"a name in .*pets is not UTF-8 \(b'.xff.xfe.jpg'\)"):
        read(root)


def test_linked_files_and_folders_are_followed(tmp_path):
    root = folder(tmp_path, names=("cat", "dog"))
    elsewhere = write(tmp_path / "elsewhere", {f"{i}.jpg": picture(30, 50, i) for i in range(3)})
    for split in ("train", "test"):
        os.symlink(elsewhere, root / split / "owl")
        os.symlink(elsewhere / "0.jpg", root / split / "cat/linked.jpg")
    dataset = load(root)
    assert dataset.class_names == NAMES and not any(dataset.skipped.values())
    test = dataset.splits["test"]
    assert np.bincount(test.labels).tolist() == [5, 4, 3]
    sizes = {path: size.tolist() for path, size in zip(paths(test), test.sizes, strict=True)}
    assert sizes[f"{root}/test/cat/linked.jpg"] == sizes[f"{root}/test/owl/2.jpg"] == [30, 50]


# Small pictures of one size


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_png_folder_becomes_the_arrays_that_pillow_decodes(tmp_path, mode):
    root = folder(tmp_path, ending="png", size=(16, 24))
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


def test_pictures_of_one_size_are_padded_as_arrays_are(tmp_path):
    dataset = load(folder(tmp_path, size=(21, 30)), preprocessing="padded_crop")
    assert dataset.image_shape == (24, 32, 3)
    assert not dataset.splits["train"].images[:, [0, -1, -2]].any()


def test_skipped_pictures_leave_no_hole_in_the_arrays(tmp_path):
    root = folder(tmp_path, ending="png", size=(16, 24))
    write(root, {"test/cat/2.png": b"text"})
    dataset = load(root, preprocessing="padded_crop", max_undecodable=0.2)
    test, files = dataset.splits["test"], sorted(root.glob("test/*/*.png"))
    del files[2]
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(test.images, [np.asarray(Image.open(path)) for path in files])


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_of_many_sizes_are_refused_as_arrays(tmp_path, split):
    root = write(folder(tmp_path), {f"{split}/dog/9.jpg": picture(40, 50)})
    message = (
        rf"{split}/dog/9.jpg is \[40, 50\] pixels .*{split}/cat/0.jpg is \[40, 48\];.*random_a"
    )
    with pytest.raises(ValueError, match=message):
        load(root, preprocessing="padded_crop")


def test_splits_of_different_sizes_are_refused_as_arrays(tmp_path):
    root = folder(tmp_path, splits=("train",))
    folder(tmp_path, splits=("test",), size=(32, 32))
    with pytest.raises(
        ValueError, match=r"test images are \(32, 32, 3\) but training images \(40, "
    ):
        load(root, preprocessing="padded_crop")


# Photographs


def test_photographs_stay_encoded_with_their_sizes_and_kinds(tmp_path):
    root = folder(tmp_path)
    write(root, {"train/owl/p.png": picture(50, 60), "train/owl/BIG.JPEG": picture(70, 33)})
    # The contents tell the kind, not the name.
    picture(20, 30).save(root / "train/owl/png in truth.jpg", format="png")
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


# The kept index


def check(raw, root):
    """Compares what was found with what the paths and Pillow say."""
    seen = [path for split in raw.splits.values() for path in paths(split)]
    assert sorted(seen) == sorted(str(path) for path in root.glob("*/*/*.jpg"))
    for split in raw.splits.values():
        check_labels(split, raw.class_names)
        for path, size in zip(paths(split), split.images.sizes.tolist(), strict=True):
            with Image.open(path) as image:
                assert size == [image.height, image.width]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder, a way to read it with an index, and the passes made over its pictures so far."""
    root, seen = folder(tmp_path, splits=("train",)), scans(monkeypatch)
    index_dir = tmp_path / "index"
    fields = {"index_dir": str(index_dir), "max_undecodable": 0.5, "test_examples": 3}
    return root, lambda at=root: read(at, **fields), seen, index_dir


def test_second_load_reads_no_picture_and_gives_the_same(kept):
    root, again, seen, index_dir = kept
    broken(root)
    first = again()
    assert len(seen) == 1 and len(list(index_dir.iterdir())) == 1
    second = again()
    assert len(seen) == 1
    assert facts(first) == facts(second) and second.splits["train"].skipped == 6


def test_files_that_may_be_read_by_now_make_a_new_index(kept, monkeypatch):
    _, again, seen, _ = kept
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        again()
    again()
    assert len(seen) == 2


def replace(path, content):
    """Writes a file that counts as changed, however coarse the file system's clock is."""
    content.save(path)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: replace(root / "train/cat/0.jpg", picture(31, 37)),
        lambda root: write(root, {"train/cat/9.jpg": picture(31, 37)}),
        lambda root: (root / "train/cat/0.jpg").unlink(),
        lambda root: (root / "train/cat/0.jpg").rename(root / "train/dog/cat.jpg") and None,
        lambda root: (root / "train/dog").rename(root / "train/zebra") and None,
        lambda root: write(root, {"test/ant/1.jpg": picture(31, 37)}),  # moves all labels
        lambda root: root.rename(root.with_name("moved")),
    ],
    ids=["changed", "added", "removed", "moved", "renamed class", "class of another split", "root"],
)
def test_whatever_changes_makes_a_new_index(kept, change):
    root, again, _, _ = kept
    check(again(), root)
    root = change(root) or root
    check(again(root), root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no index"),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(path.read_bytes()[:700] + b"!!!" + path.read_bytes()[703:]),
        lambda path: np.savez(path, labels=np.arange(3)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "text", "cut short", "changed", "another", "folder"],
)
def test_damaged_index_is_made_anew_with_a_warning(kept, caplog, damage):
    root, again, seen, index_dir = kept
    again()
    (path,) = index_dir.iterdir()
    damage(path)
    check(again(), root)
    assert len(seen) == 2 and f"the index {path} cannot be read" in caplog.text
    assert list(index_dir.iterdir()) == [path]
    if not path.is_dir():
        again()
        assert len(seen) == 2


def test_index_that_cannot_be_kept_is_only_a_warning(tmp_path, caplog):
    root = write(folder(tmp_path), {"file": b""})
    check(read(root, index_dir=str(root / "file/index")), root)
    assert f"the index of {root}/train cannot be kept in {root}/file/index" in caplog.text


def test_index_that_does_not_fit_the_disk_leaves_nothing(kept, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    root, again, _, index_dir = kept
    monkeypatch.setattr(indexing.np, "savez", full)
    check(again(), root)
    assert "No space left" in caplog.text and not list(index_dir.iterdir())


def test_index_in_a_bucket_is_refused(tmp_path):
    with pytest.raises(ValueError, match="index_dir is 'gs://bucket', expected a folder of this"):
        read(folder(tmp_path), index_dir="gs://bucket")


def test_index_without_a_home_is_not_kept(tmp_path, caplog):
    read(folder(tmp_path), index_dir="~nobody-of-that-name/index")
    assert "cannot be kept in ~nobody-of-that-name/index" in caplog.text
