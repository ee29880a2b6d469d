"""Findings of a dataset: similar class names and duplicate images; quotas of held-out images."""

import numpy as np
import pytest
from sample_images import config, make_image, write

from imta_jax.data import load_dataset
from imta_jax.data.findings import Duplicates, find_duplicates, pixel_digests, similar_classes
from imta_jax.data.holdout import class_quotas, stratified_holdout


def folder(root, splits=("train", "test"), names=("cat", "dog")):
    many = [(split, name, i) for split in splits for name in names for i in range(4)]
    return write(
        root, {f"{s}/{n}/{i}.png": make_image(16, 24, k) for k, (s, n, i) in enumerate(many)}
    )


@pytest.mark.parametrize(
    "names",
    [
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"),
        ("Cat", "cat"),
        ("cat", "cat "),
    ],
)
def test_class_names_that_look_alike_are_grouped_and_logged(tmp_path, names, caplog):
    assert similar_classes([names[0], "dog", names[1]]) == (names,)
    dataset = load_dataset(config(folder(tmp_path, names=(*names, "dog"))))
    (actual,) = dataset.findings.similar_classes
    assert set(actual) == set(names)
    assert repr(names[0]) in caplog.text and repr(names[1]) in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("hot dog ", " hot dog", "hot  dog", "hot\u00a0dog", "hot\tdog", "Hot Dog"),
        *("h\u200bot dog", "hot dog\u200d", "hot dog \ufeff", "hot\u00ad dog", "hot dog\ufe0f"),
        "hot \u200b dog",
    ],
)
def test_spaces_and_invisible_characters_do_not_distinguish_names(name):
    assert similar_classes(["hot dog", "cat", name]) == (("hot dog", name),)


def test_class_names_that_only_differ_in_the_alphabet_are_similar():
    cyrillic, greek = "\u0440\u0435\u0430r", "\u03a1ear"
    names = ["pear", "fig", cyrillic, greek, "\u0412\u043e\u043b\u043a", "\u0432\u043e\u043b\u043a"]
    assert similar_classes(names) == (("pear", cyrillic, greek), tuple(names[4:]))
    # Two names, each of which looks like the third.
    joined = ["\u0432", "B", "\u0412"]
    assert similar_classes(joined) == (("\u0432", "B", "\u0412"),)


def test_different_class_names_are_not_similar():
    assert similar_classes(["cat", "cats", "c at", "ca t", "dog"]) == ()


def test_duplicates_are_counted_across_splits_and_classes():
    digests = {"train": [1, 2, 3, 3, 4], "validation": [5, 1], "test": [2, 2, 6, 5]}
    labels = {"train": [0, 0, 1, 0, 1], "validation": [1, 0], "test": [0, 1, 1, 1]}
    arrays = {name: np.array(values, np.int64) for name, values in digests.items()}
    actual = find_duplicates(
        arrays,
        {name: np.array(values, np.int32) for name, values in labels.items()},
        lambda split, i: f"{split} {i}",
    )
    assert actual.across_splits == {
        ("validation", "train"): 1,
        ("test", "train"): 2,
        ("test", "validation"): 1,
    }
    assert actual.in_two_classes == 2 + 3  # Of digest 3, and of digest 2.
    assert actual.examples == (
        "train 0 = validation 1",
        "train 1 = test 0",
        "train 2 = train 3",
        "validation 0 = test 3",
    )


def test_examples_of_duplicates_have_one_of_each_two_splits():
    digests = {"train": np.array([*range(9), *range(9)]), "test": np.array([8, 99])}
    labels = {name: np.arange(len(values), dtype=np.int32) for name, values in digests.items()}
    actual = find_duplicates(digests, labels, lambda split, i: f"{split} {i}")
    assert len(actual.examples) == 5
    assert actual.examples[:2] == ("train 0 = train 9", "train 8 = test 0")


def test_distinct_images_have_no_duplicates():
    digests = {"train": np.arange(5), "test": np.arange(5, 9)}
    labels = {name: np.zeros(len(values), np.int32) for name, values in digests.items()}
    assert find_duplicates(digests, labels, lambda *_: "") == Duplicates()


@pytest.mark.parametrize("preprocessing", ["padded_crop", "random_area_crop"])
def test_equal_images_in_two_splits_are_logged_with_their_names(tmp_path, preprocessing, caplog):
    root = folder(tmp_path)
    write(root, {"test/dog/9.png": (root / "train/cat/1.png").read_bytes()})
    dataset = load_dataset(config(root, preprocessing=preprocessing, image_size=8, resize=9))
    actual = dataset.findings.duplicates
    assert sum(actual.across_splits.values()) == 1 and actual.in_two_classes == 2
    assert "1 test images are also" in caplog.text


def test_equal_arrays_have_equal_digests():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    images[7] = images[2]
    digests = pixel_digests(images)
    assert digests[7] == digests[2] and len(np.unique(digests)) == 8


@pytest.mark.parametrize(
    ("counts", "examples"),
    [([1] * 5 + [50] * 15, 100), ([1, 1, 1, 9], 6), ([2, 30], 31), ([1] * 19 + [2], 20)],
)
def test_holdout_leaves_images_in_every_class_if_possible(counts, examples):
    counts = np.array(counts)
    quotas = class_quotas(counts, examples)
    kept = counts - quotas
    assert quotas.sum() == examples and (quotas >= 0).all() and (kept >= 0).all()
    assert (kept > 0).all() or kept.max() <= 1
    labels = np.repeat(np.arange(len(counts)), counts)
    held_out = stratified_holdout(labels, examples=max(examples, len(counts)), seed=0)
    assert held_out.sum() == max(examples, len(counts))


def test_quotas_without_small_classes_follow_the_largest_remainders():
    assert class_quotas(np.array([10, 20, 33]), 20).tolist() == [3, 6, 11]


def test_duplicates_of_a_decoded_folder_are_named_by_file(tmp_path, caplog):
    root = folder(tmp_path)
    copied = (root / "train/cat/1.png").read_bytes()
    write(root, {"train/cat/0.png": b"left out", "test/dog/2.png": copied})
    fields = {"preprocessing": "padded_crop", "validation_examples": 2, "max_undecodable": 0.5}
    dataset = load_dataset(config(root, **fields))
    (example,) = dataset.findings.duplicates.examples
    assert example == f"{root}/train/cat/1.png = {root}/test/dog/2.png"
    assert example in caplog.text
