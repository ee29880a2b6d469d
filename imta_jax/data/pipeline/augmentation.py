"""Order and augmentation of an epoch: pure functions of (seed, epoch, example index).

All random numbers of an epoch are drawn before its first batch. Batch size, pipeline, number of
processes, workers and restarts therefore cannot change how an example is augmented.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8, UInt64

from imta_jax.data.pipeline.preprocessing import Preprocessing, check_at_least


class EpochPlan(NamedTuple):
    """Order and augmentation of the N examples of an epoch.

    Attributes:
      order: a permutation: the example that comes first, second, ...
      window: by example index: top, left, height and width of the crop, in pixels of the image. It
        may extend beyond the image, where pixels are 0.
      flip: by example index: whether the crop is mirrored horizontally.
    """

    order: Int64[np.ndarray, " N"]
    window: Float32[np.ndarray, "N 4"]
    flip: Bool[np.ndarray, " N"]


def epoch_plan(
    preprocessing: Preprocessing, sizes: Int[np.ndarray, "N 2"], *, seed: int, epoch: int
) -> EpochPlan:
    """Draws an epoch: a uniform permutation, a crop per image and flips with probability 1/2.

    The order does not depend on the preprocessing. The crop of an example does not depend on the
    number of examples.

    Args:
      preprocessing: distribution of the crops.
      sizes: height and width of each image.
      seed: seed of the run, at least 0.
      epoch: number of the epoch, from 0.

    Raises:
      ValueError: a negative seed or epoch, or no examples.
    """
    check_at_least(0, seed=seed, epoch=epoch)
    check_at_least(1, num_examples=len(sizes))
    words = _random_words(np.random.SeedSequence(seed, spawn_key=(epoch,)), len(sizes))
    crop_key = np.random.SeedSequence(seed, spawn_key=(epoch, 1))
    return EpochPlan(
        order=np.argsort(words[:, 0], kind="stable"),
        window=preprocessing.train_windows(sizes, words, crop_key),
        flip=(words[:, 3] % np.uint64(2)).astype(bool) & preprocessing.flip,
    )


def _random_words(key: np.random.SeedSequence, num_examples: int) -> UInt64[np.ndarray, "N 4"]:
    """Four random 64-bit words per example.

    Philox is counter-based: step i of its counter yields the four words of example i. NumPy keeps
    these raw words from version to version, but not the stream of a `Generator`.
    """
    return np.random.Philox(key).random_raw(4 * num_examples).reshape(num_examples, 4)


def crop(
    images: UInt8[np.ndarray, "N H W C"],
    window: Float32[np.ndarray, "N 4"],
    flip: Bool[np.ndarray, " N"],
) -> UInt8[np.ndarray, "N H W C"]:
    """Crops zero-padded images to their own size and mirrors some of them.

    Args:
      images: one image per window.
      window: top, left, height and width in whole pixels; height and width are H and W.
      flip: whether a crop is mirrored horizontally.

    Returns:
      The crops.
    """
    _, height, width, _ = images.shape
    corner = window[:, :2].astype(np.int64)
    padding = int(np.abs(corner).max(initial=0))
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows = padding + corner[:, :1] + np.arange(height)  # [N, H]
    columns = padding + corner[:, 1:] + np.arange(width)  # [N, W]
    columns = np.where(flip[:, np.newaxis], columns[:, ::-1], columns)
    example = np.arange(len(images))[:, np.newaxis, np.newaxis]
    return padded[example, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
