"""Reads image files with Pillow, preprocessed as in evaluation.

Files that training would leave out are rejected for the same reason. `EvaluationTransform`
describes the steps after decoding.
"""

import errno
import os
import stat
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
from imta_jax.runtime.paths import local_path


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
    training. Pipes, folders and broken links with such names are listed, and so are folders and
    files that may not be read: `read_image` rejects them.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: an empty path, or a folder without image files.
    """
    files: list[Path] = []
    for argument in map(str, paths):
        if not argument.strip():  # `Path` would take it as the current folder
            raise InputError("an image path is empty; expected an image file or a folder")
        if "://" in argument and not os.path.exists(argument):
            argument = str(local_path("image", argument))
        # Not `expanduser` alone: "~copy.png" is an ordinary name.
        path = Path(argument).expanduser() if argument.startswith("~/") else Path(argument)
        try:
            files += _images_of(path)
        except MissingFileError:
            raise
        except OSError:  # in a folder that may not be read
            files.append(path)
    return files


def _images_of(path: Path) -> list[Path]:
    """The path of a file, or those in a folder."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        inside = sorted(_images_below(path, set()))
        if not inside:
            raise InputError(
                f"{path}: no image files in this folder; expected {' '.join(SUFFIXES)}"
            )
        return inside
    if mode or path.is_symlink():  # `read_image` rejects a broken link
        return [path]
    raise MissingFileError(f"{path} does not exist; expected an image file or a folder")


def _images_below(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    """Names with an image suffix in a folder and the folders in it, and what may not be read.

    Args:
      folder: the folder.
      above: device and inode of the folders that contain it, which a link may lead back to.
    """
    try:
        state, inside = folder.stat(), os.listdir(folder)
    except OSError:
        yield folder
        return
    inode = (state.st_dev, state.st_ino)
    if inode in above:
        return
    for path in (folder / name for name in inside if not name.startswith(".")):
        try:
            if path.name.lower().endswith(SUFFIXES):
                yield path
            elif stat.S_ISDIR(_mode(path)):
                yield from _images_below(path, {*above, inode})
        except OSError:  # its kind cannot be read, as in a folder with mode 0444
            yield path


def _mode(path: Path) -> int:
    """The mode of a file or folder after links; 0 for a broken or circular link.

    Unlike `Path.is_dir`, it raises an OSError in a folder that may not be read, in every
    version of Python.
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


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
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # raises for a folder that may not be read
        if not stat.S_ISREG(mode):  # reading a pipe could block
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
