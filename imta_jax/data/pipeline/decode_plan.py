"""The plan of decoding: the window of each image, in pixels at the decoded resolution.

A JPEG is cropped while it is decoded, so that only the required part is decompressed. A window with
many more pixels than required is decoded at a half, a quarter or an eighth of the resolution.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from imta_jax.data.decoding.exif import displayed_sizes, stored_windows
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import DecodeGroups
from imta_jax.data.pipeline.decoded_part import extra_columns
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.evaluation_transform import read_pixels

# A JPEG can be decoded at 1/1, 1/2, 1/4 or 1/8 of its resolution, the last three for less work.
RATIOS = (1, 2, 4, 8)


class DecodePlan(NamedTuple):
    """The decoding of R positions of `BatchIndices`.

    Attributes:
      index: the example; 0 for padding.
      window: the crop, in pixels of the image.
      cut: the decoded part, in pixels of the image at the resolution it is decoded at.
      kind: how it is decoded: 0 for the whole image, or 1 + position of the ratio in `RATIOS`.
      margin: decoded columns before the window.
      width: decoded columns of the window.
      orientation: the EXIF orientation to apply afterwards; `window` and `cut` are in stored
        pixels.
    """

    index: Int64[np.ndarray, " R"]
    window: Float32[np.ndarray, "R 4"]
    cut: Int32[np.ndarray, "R 4"]
    kind: Int32[np.ndarray, " R"]
    margin: Int32[np.ndarray, " R"]
    width: Int32[np.ndarray, " R"]
    orientation: UInt8[np.ndarray, " R"]


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
    before, after = extra_columns(first[:, 1] * ratio[:, 0], sizes[:, 1] - last[:, 1], kind)
    before //= ratio[:, 0]
    width = last[:, 1] - first[:, 1]
    first[:, 1] -= before
    last[:, 1] += after
    cut = np.concatenate([first, last - first], axis=1)
    resized = (kind == 0) | exact  # resized in TensorFlow's graph, which drops the extra columns
    margin, width = np.where(resized, 0, before), np.where(resized, size, width)
    return DecodePlan(index, window, cut, kind, margin, width, orientation)


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


def max_group_bytes(
    images: np.ndarray | EncodedImages, plan: DecodePlan, groups: DecodeGroups
) -> int:
    """The largest memory of a group's decoded pixels, before they are resized."""
    if isinstance(images, np.ndarray):
        return int(images[0].nbytes * groups.positions.shape[1])
    whole = images.sizes[plan.index]  # images other than JPEGs are decoded completely
    decoded = (plan.cut[:, 2:] if groups.kind else whole).astype(np.int64)
    return int(3 * decoded[groups.positions].prod(axis=-1).sum(axis=1).max())
