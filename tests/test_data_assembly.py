"""Groups of decoded pictures become batches, whatever the order in which they come."""

import threading

import numpy as np
import pytest

from imta_jax.data.assembly import assembled, groups_of, kinds_of_groups, read_ahead
from imta_jax.data.rows import PADDING_INDEX, Rows


def drawn_rows(batches, batch_size, padding, seed=0):
    rng = np.random.default_rng(seed)
    count = batches * batch_size
    index = rng.permutation(count)
    index[count - padding :] = PADDING_INDEX
    return Rows(index, np.zeros((count, 4), np.float32), rng.random(count) < 0.5)


@pytest.mark.parametrize(("batch_size", "together"), [(1, 1), (5, 5), (8, 8), (50, 5), (96, 8)])
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_groups_hold_every_image_and_are_within_a_batch(batch_size, together, padding):
    index = drawn_rows(6, batch_size, min(padding, 6 * batch_size)).index
    kind = np.random.default_rng(3).integers(0, 3, len(index))
    places = groups_of(index, kind, batch_size)
    assert places.shape[1] == together
    np.testing.assert_array_equal(np.unique(places), np.flatnonzero(index != PADDING_INDEX))
    batch = places // batch_size
    assert (batch == batch[:, :1]).all()
    # Nothing is decoded twice but in place of padding.
    shown = (index != PADDING_INDEX).sum()
    assert places.size - shown < together
    # Of three kinds, at most two groups of a batch are mixed.
    mixed = kinds_of_groups(kind[places]) == -1
    alike = kind[places[~mixed]]
    np.testing.assert_array_equal(alike.min(axis=1), alike.max(axis=1))
    assert np.bincount(batch[mixed, 0], minlength=1).max() <= 2


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
    places = groups_of(rows.index, np.zeros(30, int), 6)
    pictures = rng.integers(0, 256, (30, 16, 16, channels), np.uint8)
    found = [(k, *pictures[places[k]]) for k in rng.permutation(len(places))]
    batches = list(assembled(iter(found), places, rows, shape))
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
    rows = Rows(np.arange(8), np.zeros((8, 4), np.float32), np.arange(8) % 3 == 0)
    places = groups_of(rows.index, np.zeros(8, int), 8)
    ((images, _),) = assembled(iter([(0, *pictures)]), places, rows, (8, 16, 16, 3))
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

    for i, item in enumerate(read_ahead(items(), 3)):
        assert item == i
        assert len(made) <= i + 5  # one more may be in the making
    assert made == list(range(20))


def test_an_error_reaches_the_reader_after_what_came_before():
    def items():
        yield 1
        raise OSError("gone")

    reading = read_ahead(items(), 4)
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

    reading = read_ahead(items(), 2)
    next(reading)
    assert threading.active_count() == before + 1
    reading.close()
    assert closed == [True]
    assert threading.active_count() == before
