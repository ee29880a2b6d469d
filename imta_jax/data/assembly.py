"""Decoded pictures become batches: resized, mirrored and put in their places, ahead of the step.

OpenCV resizes a window in a third of the time that TensorFlow takes, and leaves Python's lock to
others meanwhile. It works here even where a tf.data service decodes: that runs TensorFlow's
operations only, and resizing is a twelfth of the work.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from imta_jax.data.rows import PADDING_INDEX, Rows

_MOST_TOGETHER = 8
_MOST_THREADS = 8  # which keep up with some eighty that decode

T = TypeVar("T")


def groups_of(index: np.ndarray, kind: np.ndarray, batch_size: int) -> np.ndarray:
    """The rows that are decoded together, int64 [K, G]: no group is part of two batches.

    Args:
      index: of the rows, int64 [R], -1 for padding; as `Rows.index`.
      kind: int [R]; rows of one kind come together, as far as they can.
      batch_size: rows per batch; G is the largest number up to 8 that divides it.

    Returns:
      Places among the R rows. Padding is decoded nowhere: groups of it alone are left out, and
      among others a row of the same group takes its place once more.
    """
    together = max(n for n in range(1, _MOST_TOGETHER + 1) if batch_size % n == 0)
    padding, batch = index == PADDING_INDEX, np.arange(len(index)) // batch_size
    places = np.lexsort((kind, padding, batch)).reshape(-1, together)
    shown = ~padding[places]  # from the first on, if any
    return np.where(shown, places, places[:, :1])[shown.any(axis=1)]


def kinds_of_groups(kind: np.ndarray) -> np.ndarray:
    """The kind that all rows of a group have, int [K], or -1 where they differ; of int [K, G]."""
    return np.where((kind == kind[:, :1]).all(axis=1), kind[:, 0], -1)


def assembled(
    found: Iterator[Sequence[np.ndarray]],
    places: np.ndarray,
    rows: Rows,
    shape: tuple[int, int, int, int],
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Batches in their order, out of groups of pictures in any order.

    Args:
      found: the number of a group and its pictures, uint8 [h, w, C] each; every group once.
      places: int64 [K, G], see `groups_of`.
      rows: R rows; of them, `flip` is done here.
      shape: of a batch, [B, H, W, C]; what has another height or width is resized, bilinearly.

    Yields:
      Images, uint8 of that shape and black in padding rows, and the rows' index, int64 [B].
    """
    batch_size = shape[0]
    batches = len(rows.index) // batch_size
    left = np.bincount(places[:, 0] // batch_size, minlength=batches)  # groups still to come
    filling: dict[int, tuple[np.ndarray, list[Future[None]]]] = {}

    def begun(batch: int) -> tuple[np.ndarray, list[Future[None]]]:
        if batch not in filling:
            filling[batch] = np.zeros(shape, np.uint8), []
        return filling[batch]

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "imta_jax batch") as threads:
        for batch in range(batches):
            while left[batch]:
                group, *pictures = next(found)
                place = places[group]
                images, jobs = begun(of := place[0] // batch_size)
                inside, flip = place % batch_size, rows.flip[place]
                jobs.append(threads.submit(_fill, images, pictures, inside, flip))
                left[of] -= 1
            images, jobs = begun(batch)
            for job in jobs:
                job.result()
            del filling[batch]
            yield images, rows.index[batch * batch_size : (batch + 1) * batch_size]


def _fill(
    images: np.ndarray, pictures: Sequence[np.ndarray], places: np.ndarray, flip: np.ndarray
) -> None:
    """Puts pictures into their places among the images of a batch."""
    import cv2  # here, since most runs never resize

    for picture, place, mirrored in zip(pictures, places, flip, strict=True):
        image = images[place]
        if picture.shape == image.shape:
            image[...] = cv2.flip(picture, 1).reshape(image.shape) if mirrored else picture
        elif mirrored:
            cv2.flip(cv2.resize(picture, image.shape[1::-1]), 1, dst=image)
        else:
            cv2.resize(picture, image.shape[1::-1], dst=image)


def read_ahead(items: Generator[T, None, None], count: int) -> Iterator[T]:
    """The same items, up to `count` of them made in advance by a thread of their own."""
    end = object()
    reader = ThreadPoolExecutor(1, "imta_jax reader")
    try:
        waiting = deque(reader.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, items, end))
            yield item
    finally:
        reader.shutdown(cancel_futures=True)
        items.close()
