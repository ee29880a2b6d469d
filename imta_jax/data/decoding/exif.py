"""The EXIF orientation of an image: reading it, and applying it to pixels and windows."""

import struct

import numpy as np
from jaxtyping import Float32, Int, UInt8

_ORIENTATION_TAG = 0x0112
_SHORT = 3  # type of a 16-bit number
_ENTRY_BYTES = 12
# Orientations 5 to 8 exchange height and width.
_FIRST_TRANSPOSED = 5


def orientation_of(tiff: bytes) -> int:
    """The orientation, 1 to 8, in EXIF data that start with a TIFF header; 1 if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for i in range(entries):
            tag, kind, _, value = struct.unpack_from(
                order + "HHIH", tiff, first + 2 + i * _ENTRY_BYTES
            )
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # data that end early
        pass
    return 1


def apply_orientation(pixels: UInt8[np.ndarray, "H W C"], orientation: int) -> np.ndarray:
    """Rotates and mirrors stored pixels to the orientation in which they are displayed.

    Args:
      pixels: as stored in the file.
      orientation: the EXIF value, 1 to 8.

    Returns:
      A view [H, W, C], or [W, H, C] for orientations 5 to 8.
    """
    if orientation >= _FIRST_TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = _mirrored(orientation)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def stored_windows(
    windows: Float32[np.ndarray, "N 4"],
    displayed_sizes: Int[np.ndarray, "N 2"],
    orientation: Int[np.ndarray, " N"],
) -> Float32[np.ndarray, "N 4"]:
    """Converts windows of displayed images to windows of the stored pixels.

    Args:
      windows: top, left, height and width in the displayed image.
      displayed_sizes: height and width of the displayed image.
      orientation: the EXIF values, 1 to 8.
    """
    corner, extent = windows[:, :2], windows[:, 2:]
    opposite = displayed_sizes - corner - extent
    mirrored = np.array([(False, False)] + [_mirrored(value) for value in range(1, 9)])
    corner = np.where(mirrored[orientation], opposite, corner)
    transposed = (orientation >= _FIRST_TRANSPOSED)[:, np.newaxis]
    corner = np.where(transposed, corner[:, ::-1], corner)
    extent = np.where(transposed, extent[:, ::-1], extent)
    return np.concatenate([corner, extent], axis=1).astype(np.float32)


def displayed_sizes(
    sizes: Int[np.ndarray, "N 2"], orientation: Int[np.ndarray, " N"]
) -> Int[np.ndarray, "N 2"]:
    """Heights and widths after the orientation is applied; also converts in the other direction."""
    return np.where((orientation >= _FIRST_TRANSPOSED)[:, np.newaxis], sizes[:, ::-1], sizes)


def _mirrored(orientation: int) -> tuple[bool, bool]:
    """Whether the (transposed) pixels are mirrored vertically and horizontally for display."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
