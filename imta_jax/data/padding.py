"""Zero padding of small images to sizes that every scale of the network can halve."""

import numpy as np
from jaxtyping import Shaped, UInt8

# Up to four scales, and each is half of the previous one.
SIZE_MULTIPLE = 8


def padded_size(size: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def padding_to(
    size: tuple[int, int], padded: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding ((above, below), (left, right)) that centers an image.

    If the padding is odd, the additional row or column comes after the image.

    Args:
      size: (height, width) of the image.
      padded: (height, width) after padding, not smaller.
    """
    height, width = (p - s for s, p in zip(size, padded, strict=True))
    return (height // 2, height - height // 2), (width // 2, width - width // 2)


def pad_images(
    images: Shaped[np.ndarray, "N H W C"],
    padding: tuple[tuple[int, int], tuple[int, int]],
    value: float | np.ndarray = 0,
) -> Shaped[np.ndarray, "N PH PW C"]:
    """Pads height and width with a value, one number or one per channel."""
    (above, below), (left, right) = padding
    count, height, width, channels = images.shape
    shape = (count, above + height + below, left + width + right, channels)
    padded = np.empty(shape, images.dtype)
    padded[...] = value
    padded[:, above : above + height, left : left + width] = images
    return padded


def pad_to_multiple(
    images: UInt8[np.ndarray, "N H W C"], multiple: int = SIZE_MULTIPLE
) -> UInt8[np.ndarray, "N PH PW C"]:
    """Pads height and width with zeros to a multiple; see `padding_to`."""
    height, width = images.shape[1:3]
    padded = (padded_size(height, multiple), padded_size(width, multiple))
    if padded == (height, width):
        return images
    return pad_images(images, padding_to((height, width), padded))
