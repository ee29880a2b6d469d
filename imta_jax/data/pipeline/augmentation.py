"""What an epoch shows of each image, and in which order: pure functions of (seed, epoch, index).

Nothing is drawn while batches are made, so that batch size, pipeline, hosts, workers and restarts
cannot change what an example looks like. Batches are cut from the plan in `batches.py`.
"""

from typing import NamedTuple

import numpy as np

from imta_jax.data.pipeline.preprocessing import Preprocessing, check_at_least


class EpochPlan(NamedTuple):
    """What happens to each of N examples in one epoch.

    Attributes:
      order: int64 [N], a permutation: the example seen first, second, ...
      window: float32 [N, 4], by example index: top, left, height and width, in pixels of the
        image, of the part that is shown; it may reach beyond the image, where all is black.
      flip: bool [N], by example index: whether that part is mirrored left to right.
    """

    order: np.ndarray
    window: np.ndarray
    flip: np.ndarray


def epoch_plan(
    preprocessing: Preprocessing, sizes: np.ndarray, *, seed: int, epoch: int
) -> EpochPlan:
    """Plans an epoch: uniform order, a window for each image, every second one mirrored.

    The order does not depend on the preprocessing, nor an example's window on how many others
    there are.

    Args:
      preprocessing: what is shown.
      sizes: int [N, 2], height and width of each image, N at least 1.
      seed: of the run, not negative.
      epoch: from 0.

    Raises:
      ValueError: a number below its least value.
    """
    check_at_least(0, seed=seed, epoch=epoch)
    check_at_least(1, num_examples=len(sizes))
    words = _random_words(np.random.SeedSequence(seed, spawn_key=(epoch,)), len(sizes))
    more = np.random.SeedSequence(seed, spawn_key=(epoch, 1))
    return EpochPlan(
        order=np.argsort(words[:, 0], kind="stable"),
        window=preprocessing.train_windows(sizes, words, more),
        flip=(words[:, 3] % np.uint64(2)).astype(bool) & preprocessing.flip,
    )


def _random_words(key: np.random.SeedSequence, num_examples: int) -> np.ndarray:
    """Four 64-bit words for each example, uint64 [N, 4].

    Philox counts: step i of its counter gives the four words of example i. Raw words, since NumPy
    keeps those the same from version to version, and the draws of a Generator not.
    """
    return np.random.Philox(key).random_raw(4 * num_examples).reshape(num_examples, 4)


def crop(images: np.ndarray, window: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Cuts windows of the images' own size out of images that are black all around, then mirrors.

    Args:
      images: [N, H, W, C].
      window: [N, 4], whole numbers; height and width are H and W.
      flip: bool [N].

    Returns:
      [N, H, W, C] of the dtype of `images`.
    """
    _, height, width, _ = images.shape
    corner = window[:, :2].astype(np.int64)
    reach = int(np.abs(corner).max(initial=0))
    padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    rows = reach + corner[:, :1] + np.arange(height)  # [N, H]
    columns = reach + corner[:, 1:] + np.arange(width)  # [N, W]
    columns = np.where(flip[:, np.newaxis], columns[:, ::-1], columns)  # mirrored: read backwards
    example = np.arange(len(images))[:, np.newaxis, np.newaxis]
    return padded[example, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
