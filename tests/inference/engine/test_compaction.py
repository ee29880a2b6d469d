"""Compaction: images keep their state when they move between batches and layouts."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.inference.engine.compaction import (
    IMAGES_FIRST,
    IMAGES_LAST,
    gather_state,
    merge_state,
)

LAYOUTS = list(itertools.product((IMAGES_FIRST, IMAGES_LAST), repeat=2))


def state_of(count, layout, seed):
    """Maps [N, 3, 2, 4] in a layout, and a carry [N, 5]; also both with the images first."""
    rng = np.random.default_rng(seed)
    maps, carry = rng.random((count, 3, 2, 4), np.float32), rng.random((count, 5), np.float32)
    arranged = maps.transpose([IMAGES_FIRST.index(axis) for axis in layout])
    return (jnp.asarray(arranged), jnp.asarray(carry)), (maps, carry)


def images_first(state, layout):
    maps, carry = state
    return np.asarray(maps).transpose([layout.index(axis) for axis in IMAGES_FIRST]), carry


@pytest.mark.parametrize("source, target", LAYOUTS)
def test_gather_selects_images(source, target):
    state, plain = state_of(6, source, 0)
    indices = np.array([4, 0, 5, 9])  # beyond the last image: padding
    gathered = images_first(gather_state(state, jnp.asarray(indices), source, target), target)
    for x, y in zip(gathered, plain, strict=True):
        np.testing.assert_array_equal(x, y[np.minimum(indices, 5)])


@pytest.mark.parametrize("begin", [0, 2, 4])
@pytest.mark.parametrize("source, target", LAYOUTS)
def test_merge_keeps_the_first_images_and_takes_the_others(source, target, begin):
    state, plain = state_of(4, target, 0)
    other, other_plain = state_of(7, source, 1)
    indices = np.array([6, 1, 3, 0])
    merged = merge_state(
        state, other, jnp.asarray(indices), jnp.asarray(begin), source=source, target=target
    )
    for x, y, z in zip(images_first(merged, target), plain, other_plain, strict=True):
        np.testing.assert_array_equal(x, np.concatenate([y[:begin], z[indices[begin:]]]))
