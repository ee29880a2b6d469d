"""Grouping for decoding, collation of decoded images, and prefetching."""

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


def random_indices(batches, batch_size, padding, seed=0):
    rng = np.random.default_rng(seed)
    count = batches * batch_size
    index = rng.permutation(count)
    index[count - padding :] = PADDING_INDEX
    return BatchIndices(index, np.zeros((count, 4), np.float32), rng.random(count) < 0.5)


@pytest.mark.parametrize("batch_size", [1, 5, 16, 50, 96])
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_groups_contain_every_image_once_and_have_one_kind(batch_size, padding):
    index = random_indices(6, batch_size, min(padding, 6 * batch_size)).index
    kind = np.random.default_rng(3).choice(3, len(index), p=(0.9, 0.08, 0.02))
    groups = group_for_decoding(index, kind, batch_size)
    every = np.concatenate([np.zeros(0, int), *(g.positions.ravel() for g in groups)])
    np.testing.assert_array_equal(np.sort(every), np.flatnonzero(index != PADDING_INDEX))
    for group in groups:
        assert (np.diff(group.positions.ravel()) > 0).all()
        assert (np.ptp(group.positions // batch_size, axis=1) <= 1).all()
        assert (kind[group.positions] == group.kind).all()
        assert group.positions.shape[1] in (1, 16)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_fewer_than_sixteen_images_of_a_kind_are_decoded_one_by_one(batch_size):
    index = random_indices(10, batch_size, padding=5).index
    groups = group_for_decoding(index, np.ones(len(index), int), batch_size)
    assert sum(g.positions.size for g in groups if g.positions.shape[1] == 1) < 16


@pytest.mark.parametrize("batch_size", [5, 96])
def test_decode_order_completes_batches_in_order(batch_size):
    index = random_indices(6, batch_size, padding=3).index
    kind = np.random.default_rng(4).choice(3, len(index), p=(0.7, 0.2, 0.1))
    groups = group_for_decoding(index, kind, batch_size)
    running = [iter(g.positions[:, 0] // batch_size) for g in groups]
    batches = [next(running[turn]) for turn in decode_order(groups, batch_size)]
    assert batches == sorted(batches)
    assert len(batches) == sum(len(g.positions) for g in groups)


def bilinear(image, size):
    """Interpolates at pixel centers, without antialiasing, in float64."""
    for axis in (0, 1):
        length = image.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        image = (1 - weight) * image.take(low, axis) + weight * image.take(high, axis)
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_groups_in_any_order_give_the_same_batches(channels):
    rng = np.random.default_rng(1)
    indices, shape = random_indices(5, 6, padding=8), (6, 16, 16, channels)
    originals = rng.integers(0, 256, (30, 16, 16, channels), np.uint8)
    # Groups of about four, so that some span two batches.
    groups = np.array_split(np.flatnonzero(indices.index != PADDING_INDEX), 6)
    actual = [(groups[k], list(originals[groups[k]])) for k in rng.permutation(len(groups))]
    batches = list(collate_batches(iter(actual), indices, shape))
    assert len(batches) == 5
    images, index = (np.concatenate(values) for values in zip(*batches, strict=True))
    np.testing.assert_array_equal(index, indices.index)
    expected = np.where(indices.flip[:, None, None, None], originals[:, :, ::-1], originals)
    expected[index == PADDING_INDEX] = 0
    np.testing.assert_array_equal(images, expected)


def test_images_of_other_sizes_are_resized_bilinearly():
    rng = np.random.default_rng(2)
    sizes = [(16, 16), (1, 1), (9, 40), (64, 3), (50, 50), (31, 17), (200, 150), (16, 15)]
    originals = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    indices = BatchIndices(np.arange(8), np.zeros((8, 4), np.float32), np.arange(8) % 3 == 0)
    ((images, _),) = collate_batches(iter([(np.arange(8), originals)]), indices, (8, 16, 16, 3))
    for original, image, flip in zip(originals, images, indices.flip, strict=True):
        expected = bilinear(original.astype(float), 16)
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(image - expected).max() <= 1.0


def test_prefetch_yields_the_items_and_computes_at_most_count_in_advance():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    for i, item in enumerate(prefetch(items(), 3)):
        assert item == i
        assert len(made) <= i + 5  # One more may be in progress.
    assert made == list(range(20))


def test_prefetch_raises_an_error_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("no file")

    items_ahead = prefetch(items(), 4)
    assert next(items_ahead) == 1
    with pytest.raises(OSError, match="no file"):
        next(items_ahead)


def test_closing_prefetch_stops_its_thread():
    closed, before = [], threading.active_count()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    items_ahead = prefetch(items(), 2)
    next(items_ahead)
    assert threading.active_count() == before + 1
    items_ahead.close()
    assert closed == [True]
    assert threading.active_count() == before
