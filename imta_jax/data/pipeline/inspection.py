"""Inspection of encoded images: header, decoding and digest, as columns of a table.

The header is read by `decoding.header`. Whether the pixels decode is tried with TensorFlow and
Pillow, or with Pillow alone where it decodes for training and evaluation, too. Images that would
need much memory, and those that TensorFlow does not decode, are postponed and then decoded a few at
a time.
"""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Int64

from imta_jax.data.decoding.header import ImageHeader, read_header
from imta_jax.data.decoding.pillow_decoder import GRAY, decode_image
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.data.pipeline.decoder import TF_DATA
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.progress_bar import with_progress

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_IMAGES_PER_CHUNK = 64
# Columns of an inspected image.
HEIGHT, WIDTH, IS_JPEG, ORIENTATION, REFUSAL, DIGEST, _SINGLE_SCAN = range(7)
COLUMNS = 7
POSTPONED = 255  # in the column REFUSAL
# Bytes per pixel while an image is inspected, including the copies that decoders make.
_PNG_BYTES = 4
_COMPLETE_JPEG_BYTES = 12  # its coefficients, and two decoded images
_EIGHTH_JPEG_BYTES = 1


@dataclass(frozen=True)
class Inspector:
    """Inspects images within a memory limit.

    Attributes:
      memory_limit_gb: memory for decoded images, in 10^9 bytes.
      decoder: one of `DECODERS`.
    """

    memory_limit_gb: float = 4.0
    decoder: str = TF_DATA

    @property
    def _bytes_per_image(self) -> int:
        return int(self.memory_limit_gb * 1e9 / 4 / usable_cores())

    def columns_by_pillow(self, contents: bytes) -> Int64[np.ndarray, " columns"]:
        """The columns of an image, from its bytes."""
        found = _header_columns(contents)
        if found[REFUSAL] == Refusal.NONE:
            per_pixel = _COMPLETE_JPEG_BYTES if found[IS_JPEG] else _PNG_BYTES
            if found[HEIGHT] * found[WIDTH] * per_pixel > self._bytes_per_image:
                found[REFUSAL] = POSTPONED
            else:
                found[REFUSAL] = _refusal_by_pillow(contents)
        return found

    def columns(self, contents: "tf.Tensor") -> list["tf.Tensor"]:
        """The columns of an image, from its bytes, as TensorFlow operations; int64 scalars."""
        tf = import_tensorflow()
        found = tf.ensure_shape(_in_python(_header_columns, contents), [COLUMNS])
        refusal = tf.cond(
            found[REFUSAL] == Refusal.NONE,
            lambda: _attempt(contents, found, self._bytes_per_image),
            lambda: found[REFUSAL],
        )
        columns = tf.unstack(found)
        columns[REFUSAL] = refusal
        return columns

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
        most = int(pixels.max()) * _COMPLETE_JPEG_BYTES
        workers = int(np.clip(self.memory_limit_gb * 1e9 / 4 // most, 1, usable_cores()))

        def refusal(i: int) -> int:
            return int(inspect_bytes(read(i), self.decoder)[REFUSAL])

        with ThreadPoolExecutor(workers, "imta_jax index") as threads:
            table[postponed, REFUSAL] = list(threads.map(refusal, postponed.tolist()))


def inspect_bytes(contents: bytes, decoder: str = TF_DATA) -> Int64[np.ndarray, " columns"]:
    """The columns of an image, from its bytes.

    Pillow decodes before TensorFlow, whose decoder prints messages about damaged images.

    Args:
      contents: the file.
      decoder: one of `DECODERS`; TensorFlow is tried only if it decodes.
    """
    found = _header_columns(contents)
    if found[REFUSAL] != Refusal.NONE:
        return found
    found[REFUSAL] = _refusal_by_pillow(contents)
    if found[REFUSAL] == Refusal.NONE and decoder == TF_DATA:
        tf = import_tensorflow()
        try:
            _decode(tf.constant(contents), bool(found[IS_JPEG]))
        except tf.errors.OpError:
            found[REFUSAL] = Refusal.DAMAGED
    return found


def collect(rows: "tf.data.Dataset", examples: int, where: str) -> Int64[np.ndarray, "N columns"]:
    """Runs a dataset of int64 vectors with a progress bar."""
    tf = import_tensorflow()
    chunks = with_progress(
        rows.batch(_IMAGES_PER_CHUNK).prefetch(tf.data.AUTOTUNE).as_numpy_iterator(),
        total=examples,
        description=f"index {where}",
        unit="images",
        size_of=len,
        log=_log,
    )
    found = list(chunks)
    spec: Any = rows.element_spec
    return np.concatenate([np.zeros((0, spec.shape[0]), np.int64), *found])


def digest_of(contents: bytes) -> int:
    """A 64-bit hash of a file, as a signed integer."""
    digest = hashlib.blake2b(contents, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _in_python(function: Callable[[bytes], Any], contents: "tf.Tensor") -> "tf.Tensor":
    tf = import_tensorflow()
    return tf.numpy_function(function, [contents], tf.int64, stateful=False)


def _header_columns(contents: bytes) -> Int[np.ndarray, " columns"]:
    digest = digest_of(contents)
    refusal, header = Refusal.NONE, ImageHeader(0, 0, False, 1, False)
    try:
        header = read_header(contents)
    except RefusedImageError as error:
        refusal = error.refusal
    *properties, single_scan = header
    return np.array([*properties, refusal, digest, single_scan], np.int64)


def _refusal_by_pillow(contents: bytes) -> Int64[np.ndarray, ""]:
    try:
        decode_image(contents)
    except RefusedImageError as error:
        return np.array(error.refusal, np.int64)
    return np.array(Refusal.NONE, np.int64)


def _attempt(contents: "tf.Tensor", found: "tf.Tensor", limit: int) -> "tf.Tensor":
    """The refusal of an image with a good header, or `POSTPONED`."""
    tf = import_tensorflow()
    # A dataset of one element with `ignore_errors` is a try statement within the graph.
    attempt = tf.data.Dataset.from_tensors((contents, found)).map(
        lambda contents, found: _decoded_refusal(contents, found, limit)
    )
    # Inspected again later, to find the reason that Pillow would find.
    failed = tf.data.Dataset.from_tensors(tf.constant(POSTPONED, tf.int64))
    return attempt.ignore_errors().concatenate(failed).take(1).get_single_element()


def _decoded_refusal(contents: "tf.Tensor", found: "tf.Tensor", limit: int) -> "tf.Tensor":
    tf = import_tensorflow()
    pixels = found[HEIGHT] * found[WIDTH]
    postponed = tf.constant(POSTPONED, tf.int64)
    accepted = tf.constant(int(Refusal.NONE), tf.int64)

    def of_jpeg() -> "tf.Tensor":
        eighth = _decode(contents, is_jpeg=True)
        may_lack_data = (found[_SINGLE_SCAN] == 0) | tf.reduce_all(eighth[-1, -1] == GRAY)
        return tf.cond(may_lack_data, complete_jpeg, lambda: accepted)

    def complete_jpeg() -> "tf.Tensor":
        return tf.cond(
            pixels * _COMPLETE_JPEG_BYTES > limit,
            lambda: postponed,
            lambda: tf.ensure_shape(_in_python(_refusal_by_pillow, contents), []),
        )

    def of_png() -> "tf.Tensor":
        # The result must depend on the pixels, or TensorFlow would not decode them.
        return tf.where(tf.size(_decode(contents, is_jpeg=False)) > 0, accepted, postponed)

    per_pixel = tf.where(found[IS_JPEG] == 1, _EIGHTH_JPEG_BYTES, _PNG_BYTES)
    return tf.cond(
        pixels * tf.cast(per_pixel, tf.int64) > limit,
        lambda: postponed,
        lambda: tf.cond(found[IS_JPEG] == 1, of_jpeg, of_png),
    )


def _decode(contents: "tf.Tensor", is_jpeg: bool) -> "tf.Tensor":
    tf = import_tensorflow()
    if is_jpeg:
        # Decoding at an eighth of the resolution decompresses all data and detects truncation.
        return tf.io.decode_jpeg(contents, channels=3, ratio=8)
    return tf.io.decode_png(contents, channels=3)
