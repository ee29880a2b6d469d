"""The order and the augmentation of an epoch, as pure functions of (seed, epoch, index).

Nothing is drawn while batches are made, so that batch size, pipeline, workers and restarts cannot
change what an example looks like. Batches are cut from the plan in `batches.py`.
"""

from typing import NamedTuple

import numpy as np


class EpochPlan(NamedTuple):
    """What happens to each of N examples in one epoch.

    Attributes:
      order: int64 [N], a permutation: the example seen first, second, ...
      row_offset: int64 [N], by example index: the first row of its crop, 0 to 2 * crop_padding.
      column_offset: int64 [N], as `row_offset`, the first column.
      flip: bool [N], by example index: whether its crop is mirrored left to right.
    """

    order: np.ndarray
    row_offset: np.ndarray
    column_offset: np.ndarray
    flip: np.ndarray


def epoch_plan(
    *, seed: int, epoch: int, num_examples: int, crop_padding: int, flip: bool
) -> EpochPlan:
    """Plans an epoch: uniform order and crops, every second image mirrored on average.

    The order does not depend on `crop_padding` or `flip`, nor an example's augmentation on
    `num_examples`.

    Args:
      seed: of the run, not negative.
      epoch: from 0.
      num_examples: N, at least 1.
      crop_padding: pixels of zeros on each side of which the crop may take some; 0 for no crop.
      flip: whether to mirror at all.

    Raises:
      ValueError: a number below its least value.
    """
    _check_at_least(0, seed=seed, epoch=epoch, crop_padding=crop_padding)
    _check_at_least(1, num_examples=num_examples)
    order_bits, row_bits, column_bits, flip_bits = _random_bits(seed, epoch, num_examples)
    offsets = np.uint64(2 * crop_padding + 1)
    return EpochPlan(
        order=np.argsort(order_bits, kind="stable"),
        row_offset=(row_bits % offsets).astype(np.int64),
        column_offset=(column_bits % offsets).astype(np.int64),
        flip=(flip_bits % np.uint64(2)).astype(bool) & flip,
    )


def _random_bits(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Four 64-bit words for each example, uint64 [4, N].

    Philox counts: step i of its counter gives the four words of example i. Raw words, since NumPy
    keeps those the same from version to version, and the draws of a Generator not.
    """
    key = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return np.random.Philox(key).random_raw(4 * num_examples).reshape(num_examples, 4).T


def augment(
    images: np.ndarray,
    row_offset: np.ndarray,
    column_offset: np.ndarray,
    flip: np.ndarray,
    *,
    crop_padding: int,
) -> np.ndarray:
    """Zero-pads images on each side, crops them back to their size, then mirrors.

    The augmentation of the paper's CIFAR experiments (Sec. 4.1, with crop_padding = 4).

    Args:
      images: [N, H, W, C].
      row_offset: integers [N], 0 to 2 * crop_padding; crop_padding leaves the image in place.
      column_offset: as `row_offset`.
      flip: bool [N].
      crop_padding: pixels of zeros on each side.

    Returns:
      [N, H, W, C] of the dtype of `images`.
    """
    _, height, width, _ = images.shape
    side = (crop_padding, crop_padding)
    padded = np.pad(images, [(0, 0), side, side, (0, 0)])
    rows = row_offset[:, np.newaxis] + np.arange(height)  # [N, H]
    columns = column_offset[:, np.newaxis] + np.arange(width)  # [N, W]
    columns = np.where(flip[:, np.newaxis], columns[:, ::-1], columns)  # mirrored: read backwards
    example = np.arange(len(images))[:, np.newaxis, np.newaxis]
    return padded[example, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
