"""Collation: decoded images are resized, mirrored and written into batches, ahead of the step.

OpenCV resizes a crop in a third of TensorFlow's time and releases Python's global interpreter lock
meanwhile. Resizing happens on this host even if a tf.data service decodes: the service only runs
TensorFlow operations, and resizing is a twelfth of the work. A resized pixel may differ by one
level of 255 between CPUs of different types.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, Int64

from imta_jax.data.pipeline.batch_indices import PADDING_INDEX, BatchIndices
from imta_jax.runtime.environment import usable_cores

_GROUP_SIZE = 16
_DECODERS_PER_RESIZER = 8  # threads that decode as many images as one thread resizes

T = TypeVar("T")


class DecodeGroups(NamedTuple):
    """Groups of images that one TensorFlow function decodes.

    Attributes:
      kind: how they are decoded, see `decode_plan.DecodePlan`.
      positions: positions in `BatchIndices` of the G images of each of K groups.
    """

    kind: int
    positions: Int64[np.ndarray, "K G"]


def group_for_decoding(
    index: Int[np.ndarray, " R"], kind: Int[np.ndarray, " R"], batch_size: int
) -> list[DecodeGroups]:
    """Groups positions that are decoded together: sixteen of one kind, the others one by one.

    An element of tf.data costs as much as a tenth of decoding an image, hence groups. Choosing the
    kind inside TensorFlow's graph costs another tenth, hence one kind per group. A group spans at
    most two neighboring batches, so that few batches are incomplete at a time.

    Args:
      index: `BatchIndices.index`; padding is in no group.
      kind: see `decode_plan.DecodePlan`.
      batch_size: examples per batch.

    Returns:
      For each kind the groups of sixteen and those of one, in the order of their positions.
    """
    valid, groups = np.flatnonzero(index != PADDING_INDEX), []
    for one_kind in np.unique(kind[valid]).tolist():
        positions = valid[kind[valid] == one_kind]
        full = positions[: len(positions) // _GROUP_SIZE * _GROUP_SIZE].reshape(-1, _GROUP_SIZE)
        near = full[:, -1] // batch_size - full[:, 0] // batch_size <= 1
        single = np.concatenate([full[~near].ravel(), positions[full.size :]])
        groups += [DecodeGroups(one_kind, full[near]), DecodeGroups(one_kind, single[:, None])]
    return [group for group in groups if len(group.positions)]


def decode_order(groups: Sequence[DecodeGroups], batch_size: int) -> Int64[np.ndarray, " steps"]:
    """The order in which groups are decoded, such that batches are completed in order.

    Returns:
      For each decoding step, the element of `groups` that the next group is from.
    """
    first = [group.positions[:, 0] for group in groups]
    batch = np.concatenate([np.zeros(0, np.int64), *first]) // batch_size
    owner = np.repeat(np.arange(len(groups)), list(map(len, first)))
    return owner[np.argsort(batch, kind="stable")]


@dataclass
class _OpenBatch:
    """A batch that is being filled."""

    images: np.ndarray
    jobs: list[Future[None]] = field(default_factory=list)


def collate_batches(
    decoded: Iterator[tuple[np.ndarray, Sequence[np.ndarray]]],
    indices: BatchIndices,
    shape: tuple[int, int, int, int],
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Makes batches, in order, from groups of decoded images in any order.

    Args:
      decoded: groups as positions in `indices`, int64 [G], and decoded images, uint8 [h, w, C]
        each. Every position that is not padding comes once.
      indices: indices of the batches; their flips are applied here.
      shape: [B, H, W, C] of a batch. Images of another height or width are resized bilinearly.

    Yields:
      Images, uint8 of that shape with zeros in the padding, and example indices, int64 [B].
    """
    batch_size = shape[0]
    batches = len(indices.index) // batch_size
    remaining = (indices.index != PADDING_INDEX).reshape(batches, batch_size).sum(axis=1)
    open_batches: dict[int, _OpenBatch] = {}

    def opened(batch: int) -> _OpenBatch:
        if batch not in open_batches:
            make = np.empty if remaining[batch] == batch_size else np.zeros  # zeros for padding
            open_batches[batch] = _OpenBatch(make(shape, np.uint8))
        return open_batches[batch]

    # Additional threads would cost time, since they contend for Python's global interpreter lock.
    resizers = usable_cores() // _DECODERS_PER_RESIZER
    with ThreadPoolExecutor(max(resizers, 1), "imta_jax batch") as threads:
        for batch in range(batches):
            while remaining[batch]:
                positions, images = next(decoded)
                owners, slots = (part.tolist() for part in np.divmod(positions, batch_size))
                targets = [opened(b).images[i] for b, i in zip(owners, slots, strict=True)]
                if resizers:
                    job = threads.submit(_write_images, targets, images, indices.flip[positions])
                    for owner in set(owners):
                        opened(owner).jobs.append(job)
                else:
                    _write_images(targets, images, indices.flip[positions])
                np.subtract.at(remaining, owners, 1)
            finished = opened(batch)
            for job in finished.jobs:
                job.result()
            del open_batches[batch]
            yield finished.images, indices.index[batch * batch_size : (batch + 1) * batch_size]


def _write_images(
    targets: Sequence[np.ndarray], images: Sequence[np.ndarray], flip: np.ndarray
) -> None:
    """Resizes and mirrors decoded images into their places in a batch."""
    import cv2  # imported here, since most runs do not resize

    # Intel's primitives are faster and differ by at most one level. The setting is per thread.
    cv2.ipp.setUseIPP_NotExact(True)
    for target, image, mirrored in zip(targets, images, flip, strict=True):
        if image.shape == target.shape:
            target[...] = cv2.flip(image, 1).reshape(target.shape) if mirrored else image
        else:
            # The copy brings the image back into the cache faster than resizing's scattered reads.
            cv2.resize(image.copy(), target.shape[1::-1], dst=target)
            if mirrored:
                cv2.flip(target, 1, dst=target)  # in place, while it is in the cache


def prefetch(items: Generator[T, None, None], count: int) -> Iterator[T]:
    """Yields the same items; a thread makes up to `count` of them in advance."""
    end: Any = object()
    reader = ThreadPoolExecutor(1, "imta_jax reader")
    try:
        waiting = deque(reader.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, items, end))
            yield item
    finally:
        reader.shutdown(cancel_futures=True)
        items.close()
