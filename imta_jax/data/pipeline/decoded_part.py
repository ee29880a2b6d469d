"""The part of an image that is decoded around a window that is then resized."""

import numpy as np
from jaxtyping import Float32, Int, Int32

from imta_jax.data.pipeline.evaluation_transform import read_pixels

# Width of a JPEG block for all chroma subsamplings except 4:1:1. A crop that starts at a multiple
# is decoded in place; otherwise TensorFlow copies every pixel row, 4% of the time.
_BLOCK = 16


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
    before, after = extra_columns(start, remaining, np.array([int(is_jpeg)]))
    extra = int(before[0]), int(after[0])
    return np.array([top, left - extra[0], height, width + sum(extra)], np.int32)


def extra_columns(
    start: Int[np.ndarray, " R"], remaining: Int[np.ndarray, " R"], kind: Int[np.ndarray, " R"]
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
    """The number of columns to decode before and after a window.

    At full resolution at least one on each side, since chroma that is stored for two columns at a
    time is interpolated between neighbors.

    Args:
      start: first column of the window, in pixels of the image.
      remaining: columns after the last column of the window.
      kind: see `decode_plan.DecodePlan`.
    """
    before, full = start % _BLOCK, kind == 1
    before = np.where(full & (before == 0) & (start > 0), _BLOCK, before)
    return np.where(kind > 0, before, 0), np.where(full, np.minimum(remaining, 1), 0)
