"""Epoch plans, augmentation and batches of arrays."""

import chex
import numpy as np
import pytest

from imta_jax.data import (
    NO_AUGMENTATION,
    PaddedCrop,
    Split,
    crop,
    epoch_plan,
    eval_batches,
    steps_per_epoch,
    train_batches,
)

PIPELINES = ("numpy", "tf_data")


def make_split(num_examples=23, shape=(8, 6, 3)):
    rng = np.random.default_rng(0)
    # Pixels are above 0, unlike padding.
    images = rng.integers(1, 256, (num_examples, *shape), np.uint8)
    labels = rng.integers(1, 5, num_examples).astype(np.int32)
    return Split(images, labels, np.arange(num_examples))


CROP = PaddedCrop(4, flip=True)


def plan(crop=CROP, num_examples=500, **changes):
    sizes = np.full((num_examples, 2), (8, 6))
    return epoch_plan(crop, sizes, **{"seed": 1, "epoch": 2, **changes})


def assert_same(left, right):
    chex.assert_trees_all_equal(list(left), list(right), strict=True)


def test_plan_is_a_permutation_with_offsets_in_range():
    order, window, flip = plan()
    np.testing.assert_array_equal(np.sort(order), np.arange(500))
    for offsets in window[:, :2].T:
        assert set(offsets.tolist()) == set(range(-4, 5))
    assert (window[:, 2:] == (8, 6)).all()
    assert flip.dtype == bool and 0.4 < flip.mean() < 0.6


def test_plan_is_a_function_of_seed_and_epoch():
    chex.assert_trees_all_equal(plan(), plan(), strict=True)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 2}, {"seed": 2**32, "epoch": 0}])
def test_plan_differs_between_epochs_and_seeds(change):
    for first, second in zip(plan(), plan(**change), strict=True):
        assert (first != second).mean() > 0.3


def test_plan_differs_between_a_large_seed_and_a_later_epoch():
    large, small = plan(seed=2**32, epoch=0), plan(seed=0, epoch=1)
    assert (large.order != small.order).any()


def test_augmentation_of_an_example_does_not_depend_on_the_number_of_examples():
    few, many = plan(num_examples=50), plan(num_examples=500)
    for field in ("window", "flip"):
        np.testing.assert_array_equal(getattr(few, field), getattr(many, field)[:50])


def test_order_does_not_depend_on_augmentation():
    np.testing.assert_array_equal(plan().order, plan(NO_AUGMENTATION).order)


def test_plan_is_the_same_in_every_numpy_version():
    order, window, flip = plan(num_examples=6)
    assert order.tolist() == [0, 4, 5, 1, 3, 2]
    assert (window[:, 0] + 4).tolist() == [7, 6, 5, 3, 0, 6]
    assert (window[:, 1] + 4).tolist() == [3, 6, 7, 6, 7, 2]
    assert flip.tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize("change", [{"seed": -1}, {"epoch": -1}])
def test_negative_seed_or_epoch_raises(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*-1"):
        plan(**change)


def test_negative_padding_raises():
    with pytest.raises(ValueError, match=r"crop_padding.*-1"):
        PaddedCrop(-1, flip=False)


def test_plan_without_examples_raises():
    with pytest.raises(ValueError, match=r"num_examples.*0"):
        plan(num_examples=0)


def slow_crop(image, window, flip):
    """Crops one image pixel by pixel; 0 outside the image."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + int(window[0]), x + int(window[1])
            if 0 <= source_y < height and 0 <= source_x < width:
                result[y, width - 1 - x if flip else x] = image[source_y, source_x]
    return result


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_is_a_mirrored_window_of_the_zero_padded_image(padding):
    images = make_split(40).images
    _, window, flip = plan(PaddedCrop(padding, flip=True), num_examples=40)
    result = crop(images, window, flip)
    expected = [slow_crop(*args) for args in zip(images, window, flip, strict=True)]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_train_batches_follow_the_plan(pipeline):
    split = make_split()
    drawn = plan(seed=7, epoch=1, num_examples=23)
    batches = train_batches(split, CROP, batch_size=5, seed=7, epoch=1, pipeline=pipeline)
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.index, drawn.order[5 * step : 5 * step + 5])
        np.testing.assert_array_equal(batch.labels, split.labels[batch.index])
        assert batch.mask.all() and batch.mask.dtype == bool
        for image, i in zip(batch.images, batch.index, strict=True):
            expected = slow_crop(split.images[i], drawn.window[i], drawn.flip[i])
            np.testing.assert_array_equal(image, expected)
    assert step == 3


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_augmentation_returns_the_images(pipeline):
    split = make_split()
    for batch in train_batches(
        split, NO_AUGMENTATION, batch_size=4, seed=0, epoch=0, pipeline=pipeline
    ):
        np.testing.assert_array_equal(batch.images, split.images[batch.index])


@pytest.mark.parametrize("shape", [(8, 6, 3), (32, 32, 1)])
@pytest.mark.parametrize("crop_padding", [0, 4])
@pytest.mark.parametrize("start_step", [0, 2])
def test_tf_data_and_numpy_give_the_same_train_batches_of_arrays(shape, crop_padding, start_step):
    arguments = {"batch_size": 5, "seed": 3, "epoch": 4, "start_step": start_step}
    split, preprocessing = make_split(shape=shape), PaddedCrop(crop_padding, flip=True)
    assert_same(
        *(train_batches(split, preprocessing, **arguments, pipeline=name) for name in PIPELINES)
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_tf_data_and_numpy_give_the_same_eval_batches_of_arrays(batch_size):
    split = make_split()
    assert_same(*(eval_batches(split, CROP, batch_size, pipeline=name) for name in PIPELINES))


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("start_step", [0, 1, 3, 4])
def test_start_step_skips_the_batches_before_it(pipeline, start_step):
    arguments = {"batch_size": 5, "seed": 3, "epoch": 4, "pipeline": pipeline}
    expected = list(train_batches(make_split(), CROP, **arguments))[start_step:]
    assert_same(train_batches(make_split(), CROP, **arguments, start_step=start_step), expected)


def test_batch_size_does_not_change_the_augmentation():
    arguments = {"seed": 3, "epoch": 4, "pipeline": "numpy"}
    small = train_batches(make_split(), CROP, batch_size=2, **arguments)
    (large,) = train_batches(make_split(), CROP, batch_size=22, **arguments)
    np.testing.assert_array_equal(np.concatenate([b.images for b in small]), large.images)


def test_every_image_is_in_a_batch_within_a_few_epochs():
    seen = set()
    for epoch in range(12):
        for batch in train_batches(
            make_split(), CROP, batch_size=16, seed=0, epoch=epoch, pipeline="numpy"
        ):
            seen.update(batch.index.tolist())
    assert seen == set(range(23))


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 24, 100])
def test_eval_batches_contain_each_image_once(pipeline, batch_size):
    split = make_split()
    batches = list(eval_batches(split, CROP, batch_size, pipeline=pipeline))
    assert all(batch.images.shape == (batch_size, 8, 6, 3) for batch in batches)
    images, labels, mask, index = (np.concatenate(values) for values in zip(*batches, strict=True))
    np.testing.assert_array_equal(index[mask], np.arange(23))
    np.testing.assert_array_equal(images[mask], split.images)
    np.testing.assert_array_equal(labels[mask], split.labels)
    assert (index[~mask] == -1).all() and not labels[~mask].any() and not images[~mask].any()
    assert len(mask) - mask.sum() < batch_size


def test_auto_gives_the_batches_of_numpy():
    split = make_split()
    assert_same(eval_batches(split, CROP, 10), eval_batches(split, CROP, 10, pipeline="numpy"))


def test_steps_per_epoch_counts_full_batches():
    assert [steps_per_epoch(23, size) for size in (1, 5, 12, 23)] == [23, 4, 1, 1]


def test_batch_size_above_the_number_of_examples_raises():
    with pytest.raises(ValueError, match=r"batch_size.*23.*24"):
        steps_per_epoch(23, 24)


def test_invalid_arguments_raise_before_the_first_batch():
    split = make_split()
    with pytest.raises(ValueError, match=r"batch_size.*0"):
        eval_batches(split, CROP, 0)
    with pytest.raises(ValueError, match=r"start_step.*0 to 4.*5"):
        train_batches(split, CROP, batch_size=5, seed=0, epoch=0, start_step=5)
    with pytest.raises(ValueError, match=r"pipeline 'tfdata'.*: tf_data, "):
        train_batches(split, CROP, batch_size=5, seed=0, epoch=0, pipeline="tfdata")
    with pytest.raises(ValueError, match="pipeline 'torch'"):
        eval_batches(split, CROP, 5, pipeline="torch")
