"""Decoding of image files with Pillow on threads, to the same pixels as TensorFlow.

Pillow decompresses the whole of a JPEG, if possible at a half, a quarter or an eighth of its
resolution, and releases Python's global interpreter lock meanwhile. `decode_plan` says which pixels
are used.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.decoding.pillow_decoder import decode_at_ratio
from imta_jax.data.decoding.refusal import RefusedImageError
from imta_jax.data.pipeline.batch_indices import PADDING_INDEX, BatchIndices
from imta_jax.data.pipeline.changed_images import (
    changed_images_error,
    check_unchanged,
    describe_change,
)
from imta_jax.data.pipeline.decode_plan import RATIOS, DecodePlan
from imta_jax.data.pipeline.encoded import EncodedImages, read_file
from imta_jax.data.pipeline.evaluation_transform import resize_cut
from imta_jax.errors import InputError, message_of
from imta_jax.runtime.environment import usable_cores

_GROUP_SIZE = 8  # images per task of a thread
_COPIES = 3  # Copies of a decoded image at a time: as decoded, as RGB, and cropped.

T = TypeVar("T")
Result = TypeVar("Result")


def decoded_groups(
    images: np.ndarray | EncodedImages,
    plan: DecodePlan,
    indices: BatchIndices,
    *,
    size: int,
    exact: bool,
    memory_limit_gb: float,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Decodes the images of `indices`, in order, on all cores.

    Args:
      images: files, or an array.
      plan: return value of `plan_decoding`.
      indices: examples; padding is skipped.
      size: required pixels per side.
      exact: see `host_pipeline.resized_batches`.
      memory_limit_gb: memory for decoded images, in 10^9 bytes.

    Yields:
      Positions in `indices` and decoded images, as `collate_batches` takes them.

    Raises:
      StorageError: a file cannot be read or decoded, or does not fit its index; see
        `changed_images`.
    """
    positions = np.flatnonzero(indices.index != PADDING_INDEX)
    groups = [positions[i : i + _GROUP_SIZE] for i in range(0, len(positions), _GROUP_SIZE)]

    def decode(group: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        return group, [
            _decode_image(images, plan, position, size, exact) for position in group.tolist()
        ]

    return on_threads(decode, groups, _parallel(images, plan.index, memory_limit_gb))


def decode_file(images: EncodedImages, index: int, ratio: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a file as it is stored, without its EXIF orientation.

    Args:
      images: files.
      index: position of the file.
      ratio: 1, or for a JPEG 2, 4 or 8 to reduce its resolution.

    Raises:
      StorageError: see `decoded_groups`.
    """
    try:
        pixels = decode_at_ratio(read_file(images, index), ratio)
    except (OSError, RefusedImageError) as error:
        change = describe_change(images, index, read_file)
        problem = change or f"{images.name(index)}: {message_of(error)}"
        raise changed_images_error([problem]) from error
    check_unchanged(images, np.array([index]))
    return pixels


def check_files(images: EncodedImages) -> None:
    """Checks that images are local files.

    Raises:
      InputError: they are records of TFRecord files or in a bucket, which TensorFlow reads.
    """
    if not images.are_local_files:
        raise InputError(
            'config.data.pipeline is "pillow", which reads local image files; expected "tf_data"'
            f' or "auto" for {images.name(0)}'
        )


def on_threads(
    function: Callable[[T], Result], items: Sequence[T], parallel: int
) -> Iterator[Result]:
    """Yields the results of a function in order; `parallel` threads work ahead of the caller."""
    threads = ThreadPoolExecutor(parallel, "imta_jax decode")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _parallel(images: np.ndarray | EncodedImages, index: np.ndarray, memory_limit_gb: float) -> int:
    """Number of threads whose images fit a quarter of the limit, at least 1.

    Another quarter and half of the limit are for images that wait and for batches.
    """
    if isinstance(images, np.ndarray):
        return usable_cores()
    largest = 3 * _COPIES * int(images.sizes[index].astype(np.int64).prod(axis=1).max(initial=1))
    return int(np.clip(memory_limit_gb * 1e9 / 4 // largest, 1, usable_cores()))


def _decode_image(
    images: np.ndarray | EncodedImages, plan: DecodePlan, position: int, size: int, exact: bool
) -> np.ndarray:
    """The pixels of one position: a crop of a JPEG, or a resized image."""
    index, kind = int(plan.index[position]), int(plan.kind[position])
    if isinstance(images, np.ndarray):
        pixels = images[index]
    else:
        pixels = decode_file(images, index, RATIOS[kind - 1] if kind else 1)
    top, left, height, width = plan.cut[position].tolist()
    part = pixels[top : top + height, left : left + width]
    if kind and not exact:
        margin = int(plan.margin[position])
        # A copy, so that the other pixels are freed.
        part = part[:, margin : margin + int(plan.width[position])].copy()
    else:
        part = resize_cut(part, plan.window[position], plan.cut[position], (size, size))
    orientation = int(plan.orientation[position])
    if orientation == 1:
        return part
    return np.ascontiguousarray(apply_orientation(part, orientation))
