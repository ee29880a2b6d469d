"""Decoded pictures become batches: resized, mirrored and put in their places, ahead of the step.

OpenCV resizes a window in a third of the time that TensorFlow takes, and leaves Python's lock to
others meanwhile. It works here even where a tf.data service decodes: that runs TensorFlow's
operations only, and resizing is a twelfth of the work. Between processors of different kinds a
resized pixel may differ by one level of 255.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from imta_jax.data.pipeline.batch_indices import PADDING_INDEX, BatchIndices
from imta_jax.runtime.environment import usable_cores

_TOGETHER = 16
_DECODING_PER_THREAD = 8  # as many threads decode what one resizes in the same time

T = TypeVar("T")


class DecodeGroups(NamedTuple):
    """Rows that are decoded in the same way.

    Attributes:
      kind: how.
      places: int64 [K, G], places among all rows; each line is decoded at once.
    """

    kind: int
    places: np.ndarray


def group_for_decoding(index: np.ndarray, kind: np.ndarray, batch_size: int) -> list[DecodeGroups]:
    """Which rows are decoded together: sixteen of one kind, the others one by one.

    Sixteen, since an element of tf.data costs as much as a tenth of decoding an image; of one kind,
    since to choose in TensorFlow's graph costs another; and out of two neighbouring batches at
    most, so that few are being filled at a time.

    Args:
      index: of the rows, int64 [R], -1 for padding, which is in no group; as `BatchIndices.index`.
      kind: int [R], see `tf_decoding.Decoding`.
      batch_size: rows per batch.

    Returns:
      Of each kind those of sixteen and those of one, in the order of their rows.
    """
    shown, found = np.flatnonzero(index != PADDING_INDEX), []
    for one in np.unique(kind[shown]).tolist():
        places = shown[kind[shown] == one]
        several = places[: len(places) // _TOGETHER * _TOGETHER].reshape(-1, _TOGETHER)
        near = several[:, -1] // batch_size - several[:, 0] // batch_size <= 1
        alone = np.concatenate([several[~near].ravel(), places[several.size :]])
        found += [DecodeGroups(one, several[near]), DecodeGroups(one, alone[:, None])]
    return [groups for groups in found if len(groups.places)]


def decode_order(groups: Sequence[DecodeGroups], batch_size: int) -> np.ndarray:
    """Whose turn it is, int [all K]: numbers of `groups`, so that batches are finished in order."""
    first = [g.places[:, 0] for g in groups]
    batch = np.concatenate([np.zeros(0, np.int64), *first]) // batch_size
    whose = np.repeat(np.arange(len(groups)), list(map(len, first)))
    return whose[np.argsort(batch, kind="stable")]


def collate_batches(
    found: Iterator[tuple[np.ndarray, Sequence[np.ndarray]]],
    rows: BatchIndices,
    shape: tuple[int, int, int, int],
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Batches in their order, out of groups of pictures in any order.

    Args:
      found: places of rows, int64 [G], and their pictures, uint8 [h, w, C] each; every row that is
        no padding once.
      rows: R rows; of them, `flip` is done here.
      shape: of a batch, [B, H, W, C]; what has another height or width is resized, bilinearly.

    Yields:
      Images, uint8 of that shape and black in padding rows, and the rows' index, int64 [B].
    """
    batch_size = shape[0]
    batches = len(rows.index) // batch_size
    shown = (rows.index != PADDING_INDEX).reshape(batches, batch_size)
    left = shown.sum(axis=1)  # images still to come
    filling: dict[int, tuple[np.ndarray, list[Future[None]]]] = {}

    def begun(batch: int) -> tuple[np.ndarray, list[Future[None]]]:
        if batch not in filling:
            make = np.empty if left[batch] == batch_size else np.zeros  # black in padding rows
            filling[batch] = make(shape, np.uint8), []
        return filling[batch]

    # No more threads than needed: handing Python's lock to each other costs them time.
    helpers = usable_cores() // _DECODING_PER_THREAD
    with ThreadPoolExecutor(max(helpers, 1), "imta_jax batch") as threads:
        for batch in range(batches):
            while left[batch]:
                place, pictures = next(found)
                of, inside = (part.tolist() for part in np.divmod(place, batch_size))
                spots = [begun(b)[0][i] for b, i in zip(of, inside, strict=True)]
                if helpers:
                    job = threads.submit(_fill, spots, pictures, rows.flip[place])
                    for b in set(of):
                        begun(b)[1].append(job)
                else:
                    _fill(spots, pictures, rows.flip[place])
                np.subtract.at(left, of, 1)
            images, jobs = begun(batch)
            for job in jobs:
                job.result()
            del filling[batch]
            yield images, rows.index[batch * batch_size : (batch + 1) * batch_size]


def _fill(images: Sequence[np.ndarray], pictures: Sequence[np.ndarray], flip: np.ndarray) -> None:
    """Puts pictures into their places, images of a batch each."""
    import cv2  # here, since most runs never resize

    # Intel's primitives resize in less time, at most one level off; set per thread.
    cv2.ipp.setUseIPP_NotExact(True)
    for image, picture, mirrored in zip(images, pictures, flip, strict=True):
        if picture.shape == image.shape:
            image[...] = cv2.flip(picture, 1).reshape(image.shape) if mirrored else picture
        else:
            # Copied first: decoded a while ago, it is back in the cache faster than by their jumps.
            cv2.resize(picture.copy(), image.shape[1::-1], dst=image)
            if mirrored:
                cv2.flip(image, 1, dst=image)  # in place: it is in the cache


def prefetch(items: Generator[T, None, None], count: int) -> Iterator[T]:
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
