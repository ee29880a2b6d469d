"""Decoding of accepted image files with Pillow, to the same pixels as TensorFlow."""

import io
import random
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from imta_jax.data.decoding import jpeg_header
from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.decoding.header import ImageHeader, read_header
from imta_jax.data.decoding.jpeg_header import jpeg_without_metadata
from imta_jax.data.decoding.png_header import png_data_is_complete, png_without_metadata
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.errors import MissingPackageError
from imta_jax.runtime.optional_packages import install_command

if TYPE_CHECKING:
    from PIL import Image

GRAY = 128  # of blocks that a JPEG lacks
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
      RefusedImageError: the file is refused, for the reason for which training leaves it out.
    """
    header = read_header(contents)
    essential = (jpeg_without_metadata if header.is_jpeg else png_without_metadata)(contents)
    pixels = _decode(essential, channels)
    if not _is_complete(contents, header, pixels):
        raise RefusedImageError(Refusal.TRUNCATED)
    return apply_orientation(pixels, header.orientation) if apply_exif else pixels


def _is_complete(contents: bytes, header: ImageHeader, pixels: UInt8[np.ndarray, "H W C"]) -> bool:
    """Whether no data of a decoded image are missing. Decoders of JPEGs replace missing data."""
    if not header.is_jpeg:
        return png_data_is_complete(contents)
    # If the only scan ends early, the last block is gray.
    if header.single_scan and (pixels[-1, -1] != GRAY).any():
        return True
    # Bytes after the end of complete data are not used, so that they change no pixel.
    changed = jpeg_without_metadata(contents, appended_to_scans=_PROBE)
    return np.array_equal(_decode(changed, pixels.shape[2]), pixels)


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
            f" {install_command('serve')}"
        ) from error
    return PIL


def _decode(contents: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
    pillow = import_pillow()
    try:
        # `Image.open` would warn of images with half of the pixels that `Refusal.TOO_LARGE` allows.
        if contents.startswith(jpeg_header.SIGNATURE):
            image = pillow.JpegImagePlugin.JpegImageFile(io.BytesIO(contents))
        else:
            image = pillow.PngImagePlugin.PngImageFile(io.BytesIO(contents))
        with image:
            image.load()
            converted = _convert(image, channels)
    except Exception as error:  # on a damaged file, decoders raise exceptions of many types
        raise RefusedImageError(Refusal.DAMAGED) from error
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
