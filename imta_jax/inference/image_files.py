"""Reads image files with Pillow, preprocessed as in evaluation.

Transparency is dropped. `EvaluationTransform` describes the other steps.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
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


def read_image(path: str | Path, transform: EvaluationTransform) -> DecodedImage:
    """Decodes and preprocesses an image file.

    Args:
      path: of any format that Pillow reads. Of several frames, the first is read.
      transform: of an export. Its network takes 1 channel (luminance) or 3 (RGB).

    Raises:
      ValueError: the file does not decode, or the image has a size that evaluation did not have.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if transform.exif_orientation == "apply":
                image = ImageOps.exif_transpose(image)
            decoded = _convert(image, transform.image_shape[2])
    except Exception as error:  # on a damaged file, decoders raise exceptions of many types
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{path}: not decoded ({reason})") from error
    size = (decoded.height, decoded.width)
    pixels = np.asarray(decoded).reshape(*size, transform.image_shape[2])
    try:
        return DecodedImage(transform.apply(pixels), size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Converts to 8-bit RGB or luminance."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"pixels of mode {image.mode!r} have 32 bits; expected 8 or 16")
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")
