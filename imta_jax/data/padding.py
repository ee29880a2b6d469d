"""Zero padding of small images to sizes that every scale of the network can halve."""

import numpy as np
from jaxtyping import UInt8

# Up to four scales, and each is half of the previous one.
SIZE_MULTIPLE = 8


def padded_size(size: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def pad_to_multiple(
    images: UInt8[np.ndarray, "N H W C"], multiple: int = SIZE_MULTIPLE
) -> UInt8[np.ndarray, "N PH PW C"]:
    """Pads height and width with zeros to a multiple; the image is centered.

    If the padding is odd, the additional row or column comes after the image.
    """
    height, width = (-size % multiple for size in images.shape[1:3])
    if height == width == 0:
        return images
    before_after = [(size // 2, size - size // 2) for size in (height, width)]
    return np.pad(images, [(0, 0), *before_after, (0, 0)])
