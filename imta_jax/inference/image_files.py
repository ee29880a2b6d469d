"""Image files as a network sees them: what the evaluation showed, made with Pillow.

Colours without their transparency, as stored: a camera's note on which side is up is not read, here
as in evaluation. Photographs: the shorter side to `resize` pixels, bilinear and antialiased, and
the central ones. Small images: as they are; of another size, so scaled that they just cover the
network's, and the central pixels.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class Picture(NamedTuple):
    """An image file, read.

    Attributes:
      pixels: uint8 [H, W, C], what the network is shown.
      size: (height, width) of the file.
    """

    pixels: np.ndarray
    size: tuple[int, int]


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and those with a picture's suffix in the folders named, in order.

    Raises:
      FileNotFoundError: one that is not there.
      ValueError: a folder without a picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not inside:
                raise ValueError(
                    f"{path}: no picture in this folder; expected {' '.join(SUFFIXES)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such picture or folder of pictures")
    return found


def read_picture(
    path: str | Path, image_shape: tuple[int, int, int], resize: int | None = None
) -> Picture:
    """Decodes a file and cuts out what the network is shown.

    Args:
      path: of any format that Pillow reads; of several pictures in it, the first.
      image_shape: (H, W, C) of the network, C 1 (luminance) or 3 (red, green, blue).
      resize: pixels of the shorter side before the central crop, at least H and W; None for images
        that are shown as they are.

    Raises:
      ValueError: it does not decode; says why.
    """
    try:
        with Image.open(path) as image:
            image.load()
            plain = _plain(image, image_shape[2])
    except Exception as error:  # on a broken file decoders raise almost anything
        why = "no picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path}: not decoded ({why})") from error
    size = (plain.height, plain.width)
    pixels = np.asarray(_framed(plain, image_shape[:2], resize))
    return Picture(pixels.reshape(image_shape), size)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """As red, green and blue, or as luminance, of 8 bits each."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of {image.mode!r}, 32 bits; expected 8 or 16")
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _framed(image: Image.Image, wanted: tuple[int, int], resize: int | None) -> Image.Image:
    """The central `wanted` pixels (height, width) of the image, resized."""
    size = (image.height, image.width)
    if resize is None and size == wanted:
        return image
    if resize is not None:
        asked, side = resize, min(size)
    else:
        # The side that has to be scaled most for the image to cover what is wanted.
        asked, side = max(zip(wanted, size, strict=True), key=lambda pair: pair[0] / pair[1])
    resized = [asked * pixels // side for pixels in size]
    corner = [round((r - w) / 2) for r, w in zip(resized, wanted, strict=True)]
    # In pixels of the file: resized and cropped at a time.
    (top, bottom), (left, right) = (
        (c * pixels / r, (c + w) * pixels / r)
        for c, w, r, pixels in zip(corner, wanted, resized, size, strict=True)
    )
    return image.resize(wanted[::-1], Image.Resampling.BILINEAR, (left, top, right, bottom))
