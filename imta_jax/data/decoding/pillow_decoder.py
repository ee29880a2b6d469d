"""Decoding of accepted image files with Pillow, to the same pixels as TensorFlow."""

import contextlib
import io
import random
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from imta_jax.data.decoding import jpeg_header
from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.decoding.header import ImageHeader, read_checked_header
from imta_jax.data.decoding.jpeg_header import jpeg_without_metadata
from imta_jax.data.decoding.png_header import png_without_metadata
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.errors import MissingPackageError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

_GRAY = 128  # Level of blocks that a JPEG lacks.
# Bytes that would change the pixels if a scan lacked data. None is 0xFF, which starts a marker.
_PROBE = bytes(random.Random(0).choices(range(255), k=1024))


def decode_image(
    contents: bytes, *, channels: int = 3, apply_exif: bool = False
) -> UInt8[np.ndarray, "H W C"]:
    """Decodes a JPEG or PNG. Transparency is dropped, and 16-bit values lose their low byte.

    Args:
      contents: the whole file.
      channels: 3 for RGB, 1 for luminance.
      apply_exif: whether the EXIF orientation is applied.

    Raises:
      RefusedImageError: the file is rejected, for the reason for which training leaves it out.
    """
    header = read_checked_header(contents)
    essential = (jpeg_without_metadata if header.is_jpeg else png_without_metadata)(contents)
    pixels = _decode(essential, channels)
    if header.is_jpeg and not _is_complete(essential, header, pixels):
        raise RefusedImageError(Refusal.TRUNCATED)
    return apply_orientation(pixels, header.orientation) if apply_exif else pixels


def jpeg_is_quickly_complete(contents: bytes, header: ImageHeader) -> bool:
    """Whether decoding at an eighth of the resolution proves that no data of a JPEG are missing.

    Decoders skip all units (MCUs) after the one in which the data end, which makes them gray. If
    that one follows the last unit of the image, its first coefficients are read as zero bits.

    Args:
      contents: the whole file.
      header: header of this file.

    Returns:
      False if data are missing, and for files of which it is unknown.

    Raises:
      RefusedImageError: the file is damaged.
    """
    if not header.extended_height:
        return False
    extended = jpeg_without_metadata(contents, height=header.extended_height)
    with _rejecting_damage(), _opened(extended) as image:
        image.draft(None, (1, 1))  # an eighth, unless the image has fewer than 8 pixels per side
        return bool((_pixels(image, 3)[-1, 0] != _GRAY).any())


def _is_complete(essential: bytes, header: ImageHeader, pixels: UInt8[np.ndarray, "H W C"]) -> bool:
    """Whether no data of a decoded JPEG are missing."""
    if jpeg_is_quickly_complete(essential, header):
        return True
    # Bytes after the end of complete data are not used, so that they change no pixel.
    changed = jpeg_without_metadata(essential, appended_to_scans=_PROBE)
    # The result must not depend on the number of channels.
    expected = pixels if pixels.shape[2] == 3 else _decode(essential, 3)
    return np.array_equal(_decode(changed, 3), expected)


def import_pillow() -> ModuleType:
    """Imports Pillow, which core functions of this package do not need.

    Raises:
      MissingPackageError: Pillow is not installed.
    """
    try:
        import PIL.Image
        import PIL.JpegImagePlugin
        import PIL.PngImagePlugin
    except ImportError as error:
        raise MissingPackageError(
            f"reading image files requires Pillow, which cannot be imported ({error}):"
            " pip install pillow, or the extra serve of imta_jax"
        ) from error
    return PIL


def decode_at_ratio(contents: bytes, ratio: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an accepted file to RGB, without checking again whether it is accepted.

    Args:
      contents: the whole file.
      ratio: 1; for a JPEG also 2, 4 or 8, by which its height and width are divided.

    Raises:
      RefusedImageError: the file is damaged.
    """
    is_jpeg = contents.startswith(jpeg_header.SIGNATURE)
    essential = (jpeg_without_metadata if is_jpeg else png_without_metadata)(contents)
    with _rejecting_damage(), _opened(essential) as image:
        if ratio > 1:
            # Pillow divides by the largest power of 2 that leaves at least this size.
            image.draft(None, (image.width // ratio, image.height // ratio))
        return _pixels(image, 3)


def _decode(contents: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
    with _rejecting_damage(), _opened(contents) as image:
        return _pixels(image, channels)


@contextlib.contextmanager
def _rejecting_damage() -> Iterator[None]:
    """Turns the exceptions of Pillow's decoders, which are of many types, into one."""
    try:
        yield
    except MissingPackageError:
        raise
    except Exception as error:
        raise RefusedImageError(Refusal.DAMAGED) from error


def _opened(contents: bytes) -> "ImageFile.ImageFile":
    # `Image.open` would warn of images with half of the pixels that `Refusal.TOO_LARGE` allows.
    pillow = import_pillow()
    if contents.startswith(jpeg_header.SIGNATURE):
        return pillow.JpegImagePlugin.JpegImageFile(io.BytesIO(contents))
    return pillow.PngImagePlugin.PngImageFile(io.BytesIO(contents))


def _pixels(image: "ImageFile.ImageFile", channels: int) -> UInt8[np.ndarray, "H W C"]:
    image.load()
    converted = _convert(image, channels)
    return np.asarray(converted).reshape(converted.height, converted.width, channels)


def _convert(image: "Image.Image", channels: int) -> "Image.Image":
    """Converts to 8-bit RGB or luminance."""
    from_array = import_pillow().Image.fromarray
    if image.mode.startswith("I"):  # 16-bit grayscale
        image = from_array((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "CMYK":
        # As TensorFlow rounds. Pillow has inverted the stored values.
        stored = 255 - np.asarray(image)
        rgb = stored[..., :3].astype(np.uint16) * stored[..., 3:] // 255
        image = from_array(rgb.astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")
