"""Reads image files with Pillow, preprocessed as in evaluation.

Transparency is dropped. The EXIF orientation is ignored, as in evaluation. With `resize`, the
shorter side is resized to that many pixels (bilinear, antialiased) and the center is cropped.
Without it, an image of the network's size is unchanged; an image of another size is scaled to just
cover the network's size and the center is cropped.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imta_jax.errors import InputError, MissingFileError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class DecodedImage(NamedTuple):
    """An image file after decoding.

    Attributes:
      pixels: the network's input.
      size: (height, width) of the image in the file.
    """

    pixels: UInt8[np.ndarray, "H W C"]
    size: tuple[int, int]


def find_image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Lists the given files, and the files with an image suffix in the given folders, in order.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a folder without image files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not inside:
                raise InputError(
                    f"{path}: no image files in this folder; expected {' '.join(SUFFIXES)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise MissingFileError(f"{path} does not exist; expected an image file or a folder")
    return found


def read_image(
    path: str | Path, image_shape: tuple[int, int, int], resize: int | None = None
) -> DecodedImage:
    """Decodes and preprocesses an image file.

    Args:
      path: of any format that Pillow reads. Of several frames, the first is read.
      image_shape: (H, W, C) of the network; C is 1 (luminance) or 3 (RGB).
      resize: pixels of the shorter side before the central crop, at least H and W; None for small
        images.

    Raises:
      ValueError: the file does not decode.
    """
    try:
        with Image.open(path) as image:
            image.load()
            decoded = _convert(image, image_shape[2])
    except Exception as error:  # on a damaged file, decoders raise exceptions of many types
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{path}: not decoded ({reason})") from error
    size = (decoded.height, decoded.width)
    pixels = np.asarray(_resize_and_crop(decoded, image_shape[:2], resize))
    return DecodedImage(pixels.reshape(image_shape), size)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Converts to 8-bit RGB or luminance."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"pixels of mode {image.mode!r} have 32 bits; expected 8 or 16")
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _resize_and_crop(
    image: Image.Image, target: tuple[int, int], resize: int | None
) -> Image.Image:
    """Resizes the image and crops its center to `target` (height, width), in one operation."""
    size = (image.height, image.width)
    if resize is None and size == target:
        return image
    if resize is not None:
        scaled_side, side = resize, min(size)
    else:
        # The side that needs the larger scale, so that the image covers the target.
        scaled_side, side = max(zip(target, size, strict=True), key=lambda pair: pair[0] / pair[1])
    resized = [scaled_side * pixels // side for pixels in size]
    corner = [round((r - t) / 2) for r, t in zip(resized, target, strict=True)]
    height, width = target
    # The crop, in pixels of the file.
    (top, bottom), (left, right) = (
        (c * pixels / r, (c + t) * pixels / r)
        for c, t, r, pixels in zip(corner, target, resized, size, strict=True)
    )
    return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
