"""Reads image files with Pillow, preprocessed as in evaluation.

Files that training would leave out are refused for the same reason. `EvaluationTransform` describes
the steps after decoding.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from imta_jax.data.decoding.exif import apply_orientation, displayed_sizes, stored_windows
from imta_jax.data.decoding.header import SUFFIXES, read_header
from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import MAX_FILE_BYTES, Refusal, RefusedImageError
from imta_jax.data.pipeline.decoded_part import evaluation_cut
from imta_jax.data.pipeline.evaluation_transform import (
    EvaluationTransform,
    central_windows,
    resize_cut,
)
from imta_jax.errors import InputError, MissingFileError


class DecodedImage(NamedTuple):
    """An image file after decoding.

    Attributes:
      pixels: the network's input.
      size: (height, width) of the image in the file, after its EXIF orientation if that is applied.
    """

    pixels: UInt8[np.ndarray, "H W C"]
    size: tuple[int, int]


def find_image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Lists the given files, and the names with an image suffix in the given folders, in order.

    Hidden files and folders in the given folders are ignored and links are followed, as in
    training. Pipes, folders and broken links with such names are listed, and `read_image` refuses
    them.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a folder without image files.
    """
    found: list[Path] = []
    for argument in map(str, paths):
        # Not `expanduser` alone: "~copy.png" is an ordinary name.
        path = Path(argument).expanduser() if argument.startswith("~/") else Path(argument)
        if path.is_dir():
            inside = sorted(_images_below(path, set()))
            if not inside:
                raise InputError(
                    f"{path}: no image files in this folder; expected {' '.join(SUFFIXES)}"
                )
            found += inside
        elif path.exists() or path.is_symlink():  # `read_image` refuses a broken link
            found.append(path)
        else:
            raise MissingFileError(f"{path} does not exist; expected an image file or a folder")
    return found


def _images_below(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    """Names with an image suffix in a folder and the folders in it.

    Args:
      folder: the folder.
      above: device and inode of the folders that contain it, which a link may lead back to.
    """
    state = folder.stat()
    inode = (state.st_dev, state.st_ino)
    if inode in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.name.lower().endswith(SUFFIXES):
            yield path
        elif path.is_dir():
            yield from _images_below(path, {*above, inode})


def read_image(path: str | Path, transform: EvaluationTransform) -> DecodedImage:
    """Decodes and preprocesses an image file.

    Args:
      path: a JPEG or PNG that `imta_jax.data.decoding` accepts.
      transform: transform of an export, whose network takes 1 channel (luminance) or 3 (RGB).

    Raises:
      ValueError: training would leave the file out, or the image has a size that evaluation did not
        have.
    """
    try:
        return decode_contents(_contents(Path(path)), transform)
    except RefusedImageError as error:
        raise InputError(f"{path}: not decoded ({error})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def decode_contents(contents: bytes, transform: EvaluationTransform) -> DecodedImage:
    """Decodes and preprocesses the contents of an image file.

    Args:
      contents: contents of a JPEG or PNG.
      transform: see `read_image`.

    Raises:
      RefusedImageError: training would leave the file out; `refusal` is the reason.
      ValueError: the image has a size that evaluation did not have.
    """
    pixels = decode_image(contents, channels=transform.image_shape[2])
    header = read_header(contents)
    orientation = header.orientation if transform.exif_orientation == "apply" else 1
    (size,) = displayed_sizes(np.array([pixels.shape[:2]]), np.array([orientation])).tolist()
    if transform.resize is None:
        oriented = np.ascontiguousarray(apply_orientation(pixels, orientation))
        return DecodedImage(transform.apply(oriented), tuple(size))
    resized = _resized(pixels, orientation, transform, is_jpeg=header.is_jpeg)
    return DecodedImage(resized, tuple(size))


def _contents(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe could block
            raise RefusedImageError(Refusal.NOT_A_FILE)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RefusedImageError(Refusal.LARGE_FILE)
        return path.read_bytes()
    except OSError as error:
        raise RefusedImageError(Refusal.UNREADABLE) from error


def _resized(
    pixels: UInt8[np.ndarray, "h w C"],
    orientation: int,
    transform: EvaluationTransform,
    *,
    is_jpeg: bool,
) -> UInt8[np.ndarray, "H W C"]:
    """Resizes the part that evaluation resizes, with the same rounding, then orients it."""
    resize, orientations = transform.resize, np.array([orientation])
    assert resize is not None, "checked by the caller"
    target, stored = transform.image_shape[:2], pixels.shape[:2]
    sizes = displayed_sizes(np.array([stored]), orientations)
    (window,) = stored_windows(central_windows(sizes, resize, target), sizes, orientations)
    height, width = displayed_sizes(np.array([target]), orientations)[0].tolist()
    cut = evaluation_cut(window, stored, (height, width), is_jpeg=is_jpeg)
    top, left, rows, columns = cut.tolist()
    part = pixels[top : top + rows, left : left + columns]
    resized = resize_cut(part, window, cut, (height, width))
    return np.ascontiguousarray(apply_orientation(resized, orientation))
