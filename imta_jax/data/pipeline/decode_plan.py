"""What is decoded for each image of a batch: the window, in pixels at the resolution of decoding.

A JPEG is cropped while it is decoded, so that only the required part is decompressed. A window with
many more pixels than required is decoded at a half, a quarter or an eighth of the resolution.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from imta_jax.data.decoding.exif import displayed_sizes, stored_windows
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import DecodeGroups
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.evaluation_transform import read_pixels

# A JPEG can be decoded at 1/1, 1/2, 1/4 or 1/8 of its resolution, the last three for less work.
RATIOS = (1, 2, 4, 8)
# Width of a JPEG block for all chroma subsamplings except 4:1:1. A crop that starts at a multiple
# is decoded in place; otherwise TensorFlow copies every pixel row, 4% of the time.
_BLOCK = 16


class DecodePlan(NamedTuple):
    """What is decoded for each of R positions of `BatchIndices`.

    Attributes:
      index: int64 [R], the example; 0 for padding.
      window: float32 [R, 4], the crop, in pixels of the image.
      cut: int32 [R, 4], the decoded part, in pixels of the image at the resolution it is decoded
        at.
      kind: int32 [R], how it is decoded: 0 for the whole image, or 1 + position of the ratio in
        `RATIOS`.
      margin: int32 [R], decoded columns before the window.
      width: int32 [R], decoded columns of the window.
      orientation: uint8 [R], the EXIF orientation to apply afterwards; `window` and `cut` are in
        stored pixels.
    """

    index: np.ndarray
    window: np.ndarray
    cut: np.ndarray
    kind: np.ndarray
    margin: np.ndarray
    width: np.ndarray
    orientation: np.ndarray


def plan_decoding(
    images: np.ndarray | EncodedImages, indices: BatchIndices, size: int, exact: bool
) -> DecodePlan:
    """Plans how images are decoded; see `host_pipeline.resized_batches` for the arguments."""
    index = np.maximum(indices.index, 0)
    is_encoded = isinstance(images, EncodedImages)
    sizes = images.sizes[index] if is_encoded else np.array([images.shape[1:3]])
    sizes = np.broadcast_to(sizes, (len(index), 2))
    window, orientation = indices.window, np.ones(len(index), np.uint8)
    if is_encoded and (images.orientation != 1).any():
        orientation = images.orientation[index]
        window = stored_windows(window, sizes, orientation)
        sizes = displayed_sizes(sizes, orientation)
    part = _whole_pixels(window, sizes, size, exact)
    kind = np.zeros(len(index), np.int32)
    if is_encoded:
        kind = np.where(images.is_jpeg[index], _jpeg_kind(part, size, exact), kind)
    # Both edges are rounded to the nearest pixel at the reduced resolution.
    ratio = np.array([1, *RATIOS], np.int32)[kind][:, None]
    first = (part[:, :2] + ratio // 2) // ratio
    last = np.maximum((part[:, :2] + part[:, 2:] + ratio // 2) // ratio, first + 1)
    before, after = _extra_columns(first[:, 1] * ratio[:, 0], sizes[:, 1] - last[:, 1], kind)
    before //= ratio[:, 0]
    width = last[:, 1] - first[:, 1]
    first[:, 1] -= before
    last[:, 1] += after
    cut = np.concatenate([first, last - first], axis=1)
    resized = (kind == 0) | exact  # resized in TensorFlow's graph, which drops the extra columns
    margin, width = np.where(resized, 0, before), np.where(resized, size, width)
    return DecodePlan(index, window, cut, kind, margin, width, orientation)


def evaluation_cut(
    window: Float32[np.ndarray, "4"],
    size: tuple[int, int],
    target: tuple[int, int],
    *,
    is_jpeg: bool,
) -> Int32[np.ndarray, "4"]:
    """The part of one image that evaluation decodes and then resizes.

    The offset of the part changes the rounding of the resize, so that inference must use it, too.

    Args:
      window: top, left, height and width, in fractions of stored pixels.
      size: height and width of the stored pixels.
      target: height and width after the resize.
      is_jpeg: whether the image is a JPEG.

    Returns:
      Top, left, height and width of the part.
    """
    (part,) = read_pixels(window[None], np.array([size]), target)
    top, left, height, width = part.tolist()
    start, remaining = np.array([left]), np.array([size[1] - left - width])
    before, after = _extra_columns(start, remaining, np.array([int(is_jpeg)]))
    extra = int(before[0]), int(after[0])
    return np.array([top, left - extra[0], height, width + sum(extra)], np.int32)


def _whole_pixels(window: np.ndarray, sizes: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """The windows in whole pixels, int32 [R, 4]; if exact, including the filter's support."""
    if exact:
        return read_pixels(window, sizes, size)
    corner, extent = window[:, :2], window[:, 2:]
    first = np.maximum(np.floor(corner), 0)
    last = np.minimum(np.ceil(corner + extent), sizes)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def _jpeg_kind(part: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """The kind with the lowest resolution that has at least `size` pixels per side, int32 [R]."""
    shorter = part[:, 2:].min(axis=1, initial=1 << 30)
    ratio = np.zeros(len(shorter)) if exact else np.log2(np.maximum(shorter / size, 1))
    return 1 + np.minimum(np.floor(ratio), len(RATIOS) - 1).astype(np.int32)


def _extra_columns(
    start: np.ndarray, remaining: np.ndarray, kind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The number of columns to decode before and after a window.

    At full resolution at least one on each side, since chroma that is stored for two columns at a
    time is interpolated between neighbors.

    Args:
      start: int [R], first column of the window, in pixels of the image.
      remaining: int [R], columns after the last column of the window.
      kind: see `DecodePlan`.
    """
    before, full = start % _BLOCK, kind == 1
    before = np.where(full & (before == 0) & (start > 0), _BLOCK, before)
    return np.where(kind > 0, before, 0), np.where(full, np.minimum(remaining, 1), 0)


def max_group_bytes(
    images: np.ndarray | EncodedImages, plan: DecodePlan, groups: DecodeGroups
) -> int:
    """The largest memory of a group's decoded pixels, before they are resized."""
    if isinstance(images, np.ndarray):
        return int(images[0].nbytes * groups.places.shape[1])
    whole = images.sizes[plan.index]  # images other than JPEGs are decoded completely
    decoded = (plan.cut[:, 2:] if groups.kind else whole).astype(np.int64)
    return int(3 * decoded[groups.places].prod(axis=-1).sum(axis=1).max())
