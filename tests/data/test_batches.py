"""Epoch plans, augmentation and the two executions of `imta_jax.data.pipeline.batches`."""

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
    images = rng.integers(1, 256, (num_examples, *shape), np.uint8)  # no 0, so that padding shows
    labels = rng.integers(1, 5, num_examples).astype(np.int32)
    return Split(images, labels, np.arange(num_examples))


CROP = PaddedCrop(4, flip=True)


def plan(crop=CROP, num_examples=500, **changes):
    sizes = np.full((num_examples, 2), (8, 6))
    return epoch_plan(crop, sizes, **{"seed": 1, "epoch": 2, **changes})


def assert_same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for field, a, b in zip(one._fields, one, other, strict=True):
            assert a.dtype == b.dtype, field
            np.testing.assert_array_equal(a, b, strict=True, err_msg=field)


def test_plan_is_a_permutation_with_offsets_in_range():
    order, window, flip = plan()
    np.testing.assert_array_equal(np.sort(order), np.arange(500))
    for offsets in window[:, :2].T:
        assert set(offsets.tolist()) == set(range(-4, 5))
    assert (window[:, 2:] == (8, 6)).all()
    assert flip.dtype == bool and 0.4 < flip.mean() < 0.6


def test_plan_is_a_function_of_seed_and_epoch():
    for one, other in zip(plan(), plan(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 2}, {"seed": 2**32, "epoch": 0}])
def test_plan_differs_between_epochs_and_seeds(change):
    for one, other in zip(plan(), plan(**change), strict=True):
        assert (one != other).mean() > 0.3


def test_plan_keeps_large_seeds_and_epochs_apart():
    large, small = plan(seed=2**32, epoch=0), plan(seed=0, epoch=1)
    assert (large.order != small.order).any()


def test_augmentation_of_an_example_does_not_depend_on_how_many_there_are():
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
def test_negative_numbers_in_a_plan_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is -1, expected at least 0"):
        plan(**change)


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="crop_padding is -1, expected at least 0"):
        PaddedCrop(-1, flip=False)


def test_plan_of_no_examples_is_refused():
    with pytest.raises(ValueError, match="num_examples is 0"):
        plan(num_examples=0)


def slow_crop(image, window, flip):
    """One image, pixel by pixel: black wherever the crop leaves the image."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + int(window[0]), x + int(window[1])
            if 0 <= source_y < height and 0 <= source_x < width:
                result[y, width - 1 - x if flip else x] = image[source_y, source_x]
    return result


@pytest.mark.parametrize("padding", [1, 4])
def test_augmented_image_is_a_mirrored_crop_of_the_padded_original(padding):
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
def test_no_crop_and_no_flip_leave_images_alone(pipeline):
    split = make_split()
    for batch in train_batches(
        split, NO_AUGMENTATION, batch_size=4, seed=0, epoch=0, pipeline=pipeline
    ):
        np.testing.assert_array_equal(batch.images, split.images[batch.index])


@pytest.mark.parametrize("shape", [(8, 6, 3), (32, 32, 1)])
@pytest.mark.parametrize("crop_padding", [0, 4])
@pytest.mark.parametrize("start_step", [0, 2])
def test_both_pipelines_make_the_same_train_batches(shape, crop_padding, start_step):
    arguments = {
        "batch_size": 5,
        "seed": 3,
        "epoch": 4,
        "start_step": start_step,
    }
    split, preprocessing = make_split(shape=shape), PaddedCrop(crop_padding, flip=True)
    assert_same(
        *(train_batches(split, preprocessing, **arguments, pipeline=name) for name in PIPELINES)
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_both_pipelines_make_the_same_eval_batches(batch_size):
    split = make_split()
    assert_same(*(eval_batches(split, CROP, batch_size, pipeline=name) for name in PIPELINES))


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("start_step", [0, 1, 3, 4])
def test_start_step_goes_on_where_the_epoch_stopped(pipeline, start_step):
    arguments = {"batch_size": 5, "seed": 3, "epoch": 4, "pipeline": pipeline}
    whole = list(train_batches(make_split(), CROP, **arguments))
    assert_same(
        train_batches(make_split(), CROP, **arguments, start_step=start_step), whole[start_step:]
    )


def test_batch_size_does_not_change_what_an_example_looks_like():
    arguments = {"seed": 3, "epoch": 4, "pipeline": "numpy"}
    small = train_batches(make_split(), CROP, batch_size=2, **arguments)
    (large,) = train_batches(make_split(), CROP, batch_size=22, **arguments)
    np.testing.assert_array_equal(np.concatenate([b.images for b in small]), large.images)


def test_every_image_is_seen_in_some_epoch():
    seen = set()
    for epoch in range(12):
        for batch in train_batches(
            make_split(), CROP, batch_size=16, seed=0, epoch=epoch, pipeline="numpy"
        ):
            seen.update(batch.index.tolist())
    assert seen == set(range(23))


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 24, 100])
def test_eval_batches_count_each_image_once(pipeline, batch_size):
    split = make_split()
    batches = list(eval_batches(split, CROP, batch_size, pipeline=pipeline))
    assert all(batch.images.shape == (batch_size, 8, 6, 3) for batch in batches)
    images, labels, mask, index = (np.concatenate(values) for values in zip(*batches, strict=True))
    np.testing.assert_array_equal(index[mask], np.arange(23))
    np.testing.assert_array_equal(images[mask], split.images)
    np.testing.assert_array_equal(labels[mask], split.labels)
    assert (index[~mask] == -1).all() and not labels[~mask].any() and not images[~mask].any()
    assert len(mask) - mask.sum() < batch_size


def test_auto_is_one_of_the_two():
    split = make_split()
    assert_same(eval_batches(split, CROP, 10), eval_batches(split, CROP, 10, pipeline="numpy"))


def test_steps_are_full_batches():
    assert [steps_per_epoch(23, size) for size in (1, 5, 12, 23)] == [23, 4, 1, 1]


def test_batch_larger_than_the_split_is_refused():
    with pytest.raises(
        ValueError, match="batch_size is 24, but the training split has 23 examples"
    ):
        steps_per_epoch(23, 24)


def test_bad_arguments_are_refused_before_the_first_batch():
    split = make_split()
    with pytest.raises(ValueError, match="batch_size is 0"):
        eval_batches(split, CROP, 0)
    with pytest.raises(ValueError, match="start_step is 5, expected 0 to 4"):
        train_batches(split, CROP, batch_size=5, seed=0, epoch=0, start_step=5)
    with pytest.raises(ValueError, match=r"unknown pipeline 'tfdata'; valid.*: tf_data, "):
        train_batches(split, CROP, batch_size=5, seed=0, epoch=0, pipeline="tfdata")
    with pytest.raises(ValueError, match="unknown pipeline"):
        eval_batches(split, CROP, 5, pipeline="torch")
