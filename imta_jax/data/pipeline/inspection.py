"""Inspection of encoded images: header, refusal and digest, as columns of a table.

Whether a file is accepted does not depend on the decoder of training: `decoding` decides it with
Pillow. Images that would need much memory are postponed and then decoded a few at a time.
"""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from imta_jax.data.decoding.header import ImageHeader, read_checked_header
from imta_jax.data.decoding.pillow_decoder import decode_image, jpeg_is_quickly_complete
from imta_jax.data.decoding.refusal import MAX_PIXELS, Refusal, RefusedImageError
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.progress_bar import with_progress

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_IMAGES_PER_CHUNK = 64
# Columns of an inspected image.
HEIGHT, WIDTH, IS_JPEG, ORIENTATION, REFUSAL, DIGEST = range(6)
COLUMNS = 6
POSTPONED = 255  # in the column REFUSAL
# Bytes per pixel while a JPEG is decoded twice: its coefficients, and two decoded images.
_BYTES_PER_PIXEL = 12


@dataclass(frozen=True)
class Inspector:
    """Inspects images within a memory limit.

    Attributes:
      memory_limit_gb: memory for decoded images, in 10^9 bytes.
    """

    memory_limit_gb: float = 4.0

    def columns(self, contents: bytes) -> Int64[np.ndarray, " columns"]:
        """The columns of an image, from its bytes."""
        max_bytes = self.memory_limit_gb * 1e9 / 4 / usable_cores()
        return _columns(contents, int(max_bytes / _BYTES_PER_PIXEL))

    def columns_in_graph(self, contents: "tf.Tensor") -> list["tf.Tensor"]:
        """Like `columns`, as a TensorFlow operation; int64 scalars."""
        tf = import_tensorflow()
        columns = tf.numpy_function(self.columns, [contents], tf.int64, stateful=False)
        return tf.unstack(tf.ensure_shape(columns, [COLUMNS]))

    def decode_postponed(
        self, table: Int64[np.ndarray, "N columns"], read: Callable[[int], bytes]
    ) -> None:
        """Decodes the postponed images of a table and writes their refusals into it.

        Args:
          table: columns of the images.
          read: maps a position in the table to the bytes of the image.
        """
        postponed = np.flatnonzero(table[:, REFUSAL] == POSTPONED)
        if not len(postponed):
            return
        pixels = table[postponed, HEIGHT] * table[postponed, WIDTH]
        most = int(pixels.max()) * _BYTES_PER_PIXEL
        workers = int(np.clip(self.memory_limit_gb * 1e9 / 4 // most, 1, usable_cores()))

        def refusal(i: int) -> int:
            return int(inspect_bytes(read(i))[REFUSAL])

        with ThreadPoolExecutor(workers, "imta_jax index") as threads:
            table[postponed, REFUSAL] = list(threads.map(refusal, postponed.tolist()))


def inspect_bytes(contents: bytes) -> Int64[np.ndarray, " columns"]:
    """The columns of an image, from its bytes, without a limit on memory."""
    return _columns(contents, MAX_PIXELS)


def collect(
    dataset: "tf.data.Dataset", examples: int, split_name: str
) -> Int64[np.ndarray, "N columns"]:
    """Runs a dataset of int64 vectors with a progress bar."""
    tf = import_tensorflow()
    chunks = with_progress(
        dataset.batch(_IMAGES_PER_CHUNK).prefetch(tf.data.AUTOTUNE).as_numpy_iterator(),
        total=examples,
        description=f"index {split_name}",
        unit="images",
        size_of=len,
        log=_log,
    )
    collected = list(chunks)
    spec: Any = dataset.element_spec
    return np.concatenate([np.zeros((0, spec.shape[0]), np.int64), *collected])


def digest_of(contents: bytes) -> int:
    """A 64-bit hash of a file, as a signed integer."""
    digest = hashlib.blake2b(contents, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _columns(contents: bytes, max_pixels: int) -> Int64[np.ndarray, " columns"]:
    header, refusal = ImageHeader(0, 0, False, 1, 0), Refusal.NONE
    try:
        header = read_checked_header(contents)
        if header.is_jpeg and not jpeg_is_quickly_complete(contents, header):
            if header.height * header.width > max_pixels:
                refusal = POSTPONED
            else:
                decode_image(contents)
    except RefusedImageError as error:
        refusal = error.refusal
    return np.array([*header[:4], refusal, digest_of(contents)], np.int64)
