"""The decoding policy: which image files are accepted, from their bytes.

Accepted are JPEG and PNG files, whatever their names, that TensorFlow (training and evaluation) and
Pillow (exported networks) decode to the same pixels. `Refusal` lists the reasons against a file.
"""

from typing import NamedTuple

from imta_jax.data.decoding import jpeg_header, png_header
from imta_jax.data.decoding.refusal import MAX_FILE_BYTES, Refusal, RefusedImageError

# Increase it when other files are accepted or rejected. Stored indexes are then computed again.
POLICY_VERSION = 4
# Suffixes of image files in folders, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageHeader(NamedTuple):
    """The header of an accepted file.

    Attributes:
      height, width: size of the stored pixels.
      is_jpeg: whether it is a JPEG; otherwise it is a PNG.
      orientation: EXIF orientation, 1 to 8; 1 if there is none.
      extended_height: see `JpegHeader`; 0 for a PNG.
    """

    height: int
    width: int
    is_jpeg: bool
    orientation: int
    extended_height: int


def read_header(contents: bytes) -> ImageHeader:
    """Inspects a file without decoding its pixels.

    Args:
      contents: the whole file.

    Raises:
      RefusedImageError: the file is rejected.
    """
    if not contents:
        raise RefusedImageError(Refusal.EMPTY)
    if len(contents) > MAX_FILE_BYTES:
        raise RefusedImageError(Refusal.LARGE_FILE)
    if contents.startswith(jpeg_header.SIGNATURE):
        jpeg = jpeg_header.read_jpeg_header(contents)
        return ImageHeader(jpeg.height, jpeg.width, True, jpeg.orientation, jpeg.extended_height)
    if contents.startswith(png_header.SIGNATURE):
        png = png_header.read_png_header(contents)
        return ImageHeader(png.height, png.width, False, png.orientation, 0)
    raise RefusedImageError(Refusal.OTHER_FORMAT)


def read_checked_header(contents: bytes) -> ImageHeader:
    """Like `read_header`; also checks the pixels of a PNG without decoding them.

    No decoder rejects a PNG after this check.

    Args:
      contents: the whole file.

    Raises:
      RefusedImageError: the file is rejected.
    """
    header = read_header(contents)
    if not header.is_jpeg:
        png_header.check_png_pixels(contents)
    return header
