"""Batches of image files: shards, padding, and files that change during a run."""

import gc
import weakref
from pathlib import Path

import chex
import numpy as np
import pytest
from random_area_crops import CROP, load, stacked
from sample_images import make_image, write

from imta_jax.data import (
    Shard,
    eval_batches,
    evaluation_images,
    train_batches,
)
from imta_jax.data.pipeline import tf_decoding


def train(split, batch_size=4, **changes):
    return train_batches(split, CROP, batch_size=batch_size, seed=5, epoch=3, **changes)


def assert_same(left, right):
    chex.assert_trees_all_equal(list(left), list(right), strict=True)


def concatenated(shards):
    """The global batches, from the local batches of several processes."""
    return [
        type(batches[0])(*(np.concatenate(values) for values in zip(*batches, strict=True)))
        for batches in zip(*shards, strict=True)
    ]


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_training_batches_concatenate_to_the_batches(image_files, count):
    split = image_files.splits["train"]
    shards = [list(train(split, shard=Shard(i, count))) for i in range(count)]
    assert all(batch.images.shape == (4 // count, 32, 32, 3) for shard in shards for batch in shard)
    assert_same(concatenated(shards), train(split))


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_evaluation_batches_concatenate_to_the_batches(image_files, count):
    split = image_files.splits["validation"]
    shards = [list(eval_batches(split, CROP, 4, shard=Shard(i, count))) for i in range(count)]
    assert [len(shard) for shard in shards] == [3] * count
    assert_same(concatenated(shards), eval_batches(split, CROP, 4))
    index = [batch.index[batch.mask] for shard in shards for batch in shard]
    assert sorted(np.concatenate(index).tolist()) == list(range(9))


def test_shard_reads_only_its_own_images(tmp_path):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(8)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    split = load(root, image_size=32, resize=36).splits["test"]
    whole = [list(train(split)), list(eval_batches(split, CROP, 4))]
    second = Shard(1, 2)
    for batches, again in zip(
        whole,
        (lambda: train(split, shard=second), lambda: eval_batches(split, CROP, 4, shard=second)),
        strict=True,
    ):
        others = np.concatenate([batch.index[:2] for batch in batches])
        hidden = [tmp_path / split.images.name(i) for i in others]
        assert len(hidden) == 4
        for path in hidden:
            path.rename(path.with_suffix(".hidden"))
        expected = np.concatenate([batch.images[2:] for batch in batches])
        np.testing.assert_array_equal(stacked(again())[0], expected)
        for path in hidden:
            path.with_suffix(".hidden").rename(path)


def test_batch_size_does_not_change_any_image(image_files):
    split = image_files.splits["train"]
    one, four, ten = (stacked(train(split, size)) for size in (1, 4, 10))
    for a, b, c in zip(one, four, ten, strict=True):
        np.testing.assert_array_equal(a[:20], b)
        np.testing.assert_array_equal(a[:20], c)
    split = image_files.splits["validation"]
    expected = evaluation_images(split, CROP, np.arange(9))
    for size in (1, 4, 16):
        images, _, mask, _ = stacked(eval_batches(split, CROP, size))
        np.testing.assert_array_equal(images[mask], expected)


@pytest.mark.parametrize("start_step", [1, 4, 5])
def test_start_step_skips_the_batches_before_it(image_files, start_step):
    split = image_files.splits["train"]
    assert_same(train(split, start_step=start_step), list(train(split))[start_step:])


def test_padding_is_masked_and_zero(image_files):
    split = image_files.splits["validation"]
    images, labels, mask, index = stacked(eval_batches(split, CROP, 4))
    np.testing.assert_array_equal(mask, [True] * 9 + [False] * 3)
    np.testing.assert_array_equal(index, [*range(9), -1, -1, -1])
    np.testing.assert_array_equal(labels[:9], split.labels)
    assert not images[9:].any() and not labels[9:].any() and images[:9].any((1, 2, 3)).all()


def test_decoders_are_made_once_and_freed_with_their_images(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            f"{split}/a/{i}.jpg": make_image(40, 50, i)
            for split in ("train", "test")
            for i in range(4)
        },
    )
    dataset = load(tmp_path, image_size=32, resize=36)
    made, make = [], tf_decoding._new_decoder
    monkeypatch.setattr(tf_decoding, "_new_decoder", lambda *a: made.append(a[1:]) or make(*a))
    first = list(train(dataset.splits["train"], batch_size=3))
    assert made
    once = list(made)
    assert_same(train(dataset.splits["train"], batch_size=3), first)
    assert made == once
    images = weakref.ref(dataset.splits["train"].images)
    del dataset, first
    gc.collect()
    assert images() is None


def test_image_removed_during_a_run_raises_with_its_name(tmp_path):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(4)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    dataset = load(root, image_size=32, resize=36)
    (root / "test/a/1.jpg").unlink()
    with pytest.raises(OSError, match=r"test/a/1\.jpg"):
        list(eval_batches(dataset.splits["test"], dataset.preprocessing, 4))


@pytest.mark.parametrize("contents", [b"", b"not an image", None])
def test_image_damaged_during_a_run_raises_with_its_name(tmp_path, contents):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(20)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    split = load(root, image_size=32, resize=36).splits["train"]
    path = split.images.name(11)
    half = Path(path).read_bytes()[:400]
    Path(path).write_bytes(half if contents is None else contents)
    with pytest.raises(OSError, match=rf"{path}") as error:
        list(train_batches(split, CROP, batch_size=len(split), seed=0, epoch=0))
    (line,) = str(error.value).splitlines()[2:]
    assert line.startswith(f"  {path}: now rejected (")
    assert "{{" not in str(error.value)
    assert "Iterator::" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 223}, r"config\.data\.resize.*224.*found 223"),
        ({"image_size": 0}, "image_size.*0"),
        ({"min_area": 0.0}, r"config\.data\.min_area.*0\.0"),
        ({"min_area": 1.5}, r"config\.data\.min_area.*1\.5"),
        (
            {"preprocessing": "random_area"},
            r"config\.data\.preprocessing.*'random_area'.*random_area_crop",
        ),
    ],
)
def test_invalid_preprocessing_raises(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **change)


def test_numpy_pipeline_for_image_files_raises(image_files):
    with pytest.raises(ValueError, match=r'pipeline.*"numpy".*"tf_data"'):
        train(image_files.splits["train"], pipeline="numpy")
