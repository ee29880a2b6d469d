"""Image files that change between indexing and decoding: detection and error message.

Each time an image is decoded, the modification time and length of its local file are compared with
those at indexing, which takes some microseconds. Files for which they differ are inspected again.
Not detected are other pixels in an image of the same format and size, and, unless they stop
decoding, changes of files in buckets, of TFRecord files, and those that keep time and length.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from imta_jax.data.decoding.header import read_header
from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import RefusedImageError
from imta_jax.data.pipeline.encoded import EncodedImages, read_file
from imta_jax.errors import StorageError, message_of

RESTORE_IMAGES = (
    "If an image was changed, moved or removed after the run began, restore it and run the same"
    " command again; a run does not resume with other data"
)


def check_unchanged(images: EncodedImages, index: Int[np.ndarray, " G"]) -> None:
    """Checks that local files still fit their index; to be called after they were read.

    Args:
      images: encoded images. The states of files that changed but fit are updated.
      index: positions of the images.

    Raises:
      StorageError: names each image whose format or size has changed or that is rejected now.
    """
    if images.states is None:
        return
    states = np.array([_state(images.path(i)) for i in index], np.int64).reshape(-1, 2)
    differing = np.flatnonzero((states != images.states[index]).any(axis=1)).tolist()
    changes = []
    for k in differing:
        change = describe_change(images, int(index[k]), read_file)
        if change and change not in changes:
            changes.append(change)
        elif not change:
            images.states[index[k]] = states[k]
    if changes:
        raise changed_images_error(changes)


def describe_change(
    images: EncodedImages, index: int, read: Callable[[EncodedImages, int], bytes]
) -> str:
    """The name of an image and how it has changed, in one line; "" if it fits its index.

    Args:
      images: encoded images.
      index: position of the image.
      read: reads the image; an OSError is described.
    """
    indexed = _described(images.is_jpeg[index], *images.stored_sizes[index].tolist())
    try:
        contents = read(images, index)
        header = read_header(contents)
        decode_image(contents)
        current = _described(header.is_jpeg, header.height, header.width)
    except RefusedImageError as error:
        current = f"rejected ({error})"
    except OSError as error:
        current = f"unreadable ({message_of(error)})"
    if current == indexed:
        return ""
    return f"{images.name(index)}: now {current}, indexed as {indexed}"


def changed_images_error(changes: Sequence[str]) -> StorageError:
    """The error for changed images, from values of `describe_change`."""
    count = len(changes)
    summary = "1 image has changed" if count == 1 else f"{count} images have changed"
    lines = [f"reading images failed: {summary} since indexing\n{RESTORE_IMAGES}", *changes]
    return StorageError("\n  ".join(lines))


def _state(path: bytes) -> tuple[int, int]:
    """Modification time in ns and size in bytes; -1 of a file that does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_mtime_ns, status.st_size


def _described(is_jpeg: bool, height: int, width: int) -> str:
    return f"{'JPEG' if is_jpeg else 'PNG'} of {height} x {width} pixels (height x width)"
