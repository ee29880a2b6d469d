"""Image folders: classes, splits and held-out images."""

import os

import numpy as np
import pytest
from image_folders import NAMES, check_labels, contents, folder, load, paths, read
from sample_images import make_image, write


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
        actual = dict(zip(paths(dataset.splits[part]), dataset.splits[part].labels, strict=True))
        examples = builder._split_examples[split]
        assert actual == {e.image_path: label.str2int(e.label) for e in examples}


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
    dataset = load(root, validation_split="hold_out", **named)
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
        (
            {"validation_split": "holdout"},
            r"config\.data\.validation_split.*'holdout'.*: hold_out, ",
        ),
        ({"test_split": "train"}, "test_split.*train_split.*'train'"),
        ({"validation_split": "test"}, "validation_split.*test_split.*'test'"),
        ({"test_examples": 2, "test_split": "hold_out"}, "test_examples.*3.*found 2"),
    ],
)
def test_invalid_splits_raise(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path, splits=("train", "val", "test"), each=1), **change)


def test_only_the_splits_that_are_used_define_classes(tmp_path):
    root = write(folder(tmp_path), {"annotations/xmls/a.xml": b"<a/>", "old/emu/1.jpg": b""})
    assert read(root).class_names == NAMES


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
