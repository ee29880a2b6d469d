"""Groups of decoded pictures become batches, whatever the order in which they come."""

import threading

import numpy as np
import pytest

from imta_jax.data.pipeline.batch_indices import PADDING_INDEX, BatchIndices
from imta_jax.data.pipeline.collate import (
    collate_batches,
    decode_order,
    group_for_decoding,
    prefetch,
)


def drawn_rows(batches, batch_size, padding, seed=0):
    rng = np.random.default_rng(seed)
    count = batches * batch_size
    index = rng.permutation(count)
    index[count - padding :] = PADDING_INDEX
    return BatchIndices(index, np.zeros((count, 4), np.float32), rng.random(count) < 0.5)


@pytest.mark.parametrize("batch_size", [1, 5, 16, 50, 96])
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_groups_hold_every_image_once_and_are_of_one_kind(batch_size, padding):
    index = drawn_rows(6, batch_size, min(padding, 6 * batch_size)).index
    kind = np.random.default_rng(3).choice(3, len(index), p=(0.9, 0.08, 0.02))
    groups = group_for_decoding(index, kind, batch_size)
    every = np.concatenate([np.zeros(0, int), *(g.places.ravel() for g in groups)])
    np.testing.assert_array_equal(np.sort(every), np.flatnonzero(index != PADDING_INDEX))
    for one in groups:
        assert (np.diff(one.places.ravel()) > 0).all()
        assert (np.ptp(one.places // batch_size, axis=1) <= 1).all()
        assert (kind[one.places] == one.kind).all()
        assert one.places.shape[1] in (1, 16)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_of_one_kind_fewer_than_sixteen_are_left_over(batch_size):
    index = drawn_rows(10, batch_size, padding=5).index
    groups = group_for_decoding(index, np.ones(len(index), int), batch_size)
    assert sum(g.places.size for g in groups if g.places.shape[1] == 1) < 16


@pytest.mark.parametrize("batch_size", [5, 96])
def test_batches_are_finished_in_their_order(batch_size):
    index = drawn_rows(6, batch_size, padding=3).index
    kind = np.random.default_rng(4).choice(3, len(index), p=(0.7, 0.2, 0.1))
    groups = group_for_decoding(index, kind, batch_size)
    running = [iter(g.places[:, 0] // batch_size) for g in groups]
    batches = [next(running[turn]) for turn in decode_order(groups, batch_size)]
    assert batches == sorted(batches)
    assert len(batches) == sum(len(g.places) for g in groups)


def bilinear(picture, size):
    """Interpolation at the middles of pixels, without a filter, in float64."""
    for axis in (0, 1):
        length = picture.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        picture = (1 - weight) * picture.take(low, axis) + weight * picture.take(high, axis)
    return picture


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_reach_their_places_from_any_order(channels):
    rng = np.random.default_rng(1)
    rows, shape = drawn_rows(5, 6, padding=8), (6, 16, 16, channels)
    pictures = rng.integers(0, 256, (30, 16, 16, channels), np.uint8)
    # Of four, so that some are of two batches.
    groups = np.array_split(np.flatnonzero(rows.index != PADDING_INDEX), 6)
    found = [(groups[k], pictures[groups[k]]) for k in rng.permutation(len(groups))]
    batches = list(collate_batches(iter(found), rows, shape))
    assert len(batches) == 5
    images, index = (np.concatenate(values) for values in zip(*batches, strict=True))
    np.testing.assert_array_equal(index, rows.index)
    expected = np.where(rows.flip[:, None, None, None], pictures[:, :, ::-1], pictures)
    expected[index == PADDING_INDEX] = 0
    np.testing.assert_array_equal(images, expected)


def test_pictures_of_other_sizes_are_interpolated():
    rng = np.random.default_rng(2)
    sizes = [(16, 16), (1, 1), (9, 40), (64, 3), (50, 50), (31, 17), (200, 150), (16, 15)]
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    rows = BatchIndices(np.arange(8), np.zeros((8, 4), np.float32), np.arange(8) % 3 == 0)
    ((images, _),) = collate_batches(iter([(np.arange(8), pictures)]), rows, (8, 16, 16, 3))
    for picture, image, flip in zip(pictures, images, rows.flip, strict=True):
        expected = bilinear(picture.astype(float), 16)
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(image - expected).max() <= 1.0


def test_items_read_ahead_are_the_same_and_no_more_than_asked_for():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    for i, item in enumerate(prefetch(items(), 3)):
        assert item == i
        assert len(made) <= i + 5  # one more may be in the making
    assert made == list(range(20))


def test_an_error_reaches_the_reader_after_what_came_before():
    def items():
        yield 1
        raise OSError("gone")

    reading = prefetch(items(), 4)
    assert next(reading) == 1
    with pytest.raises(OSError, match="gone"):
        next(reading)


def test_who_stops_early_stops_the_thread():
    closed, before = [], threading.active_count()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    reading = prefetch(items(), 2)
    next(reading)
    assert threading.active_count() == before + 1
    reading.close()
    assert closed == [True]
    assert threading.active_count() == before
