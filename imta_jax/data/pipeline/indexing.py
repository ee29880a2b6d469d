"""The index of encoded images: sizes, labels, record offsets, orientations and rejected images.

One pass reads each image once, before training starts, and the result is stored. Random access,
exact splits and crops that are planned ahead depend on it. Indexing ImageNet takes some minutes on
a large host. A stored index is loaded without reading images, except those that were rejected.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from imta_jax.data.decoding.pillow_decoder import import_pillow
from imta_jax.data.decoding.refusal import MAX_FILE_BYTES, Refusal, RefusedImageError
from imta_jax.data.pipeline.damaged_records import damaged_records_named
from imta_jax.data.pipeline.decoder import PILLOW, TF_DATA
from imta_jax.data.pipeline.encoded import EncodedImages, read_file
from imta_jax.data.pipeline.inspection import (
    COLUMNS,
    DIGEST,
    HEIGHT,
    IS_JPEG,
    ORIENTATION,
    REFUSAL,
    WIDTH,
    Inspector,
    collect,
    inspect_bytes,
)
from imta_jax.data.pipeline.pillow_decoding import on_threads
from imta_jax.data.pipeline.stored_index import Indexed, load_or_scan
from imta_jax.data.pipeline.tf_decoding import reader, without_autograph
from imta_jax.data.pipeline.tf_execution import reading_errors
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.progress_bar import with_progress

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_RECORD_FRAME_BYTES = 16  # Length and two checksums of a record in a TFRecord file.
_PARALLEL_SHARDS = 16


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made and stored.

    Attributes:
      index_dir: folder of stored indexes; "" stores nothing.
      split_name: the split, for progress and log messages.
      memory_limit_gb: memory for decoded images, in 10^9 bytes.
      decoder: one of `DECODERS`; "pillow" reads the files without TensorFlow.
    """

    index_dir: str
    split_name: str
    memory_limit_gb: float = 4.0
    decoder: str = TF_DATA

    @property
    def inspector(self) -> Inspector:
        """The inspector of these images.

        Raises:
          MissingPackageError: Pillow is not installed.
        """
        import_pillow()
        return Inspector(self.memory_limit_gb)


def index_files(
    images: EncodedImages,
    labels: Int32[np.ndarray, " N"],
    unopened: UInt8[np.ndarray, " N"],
    check_size: Bool[np.ndarray, " N"],
    key: Any,
    options: IndexOptions,
) -> Indexed:
    """Inspects image files.

    Args:
      images: the files, without sizes.
      labels: class of each file.
      unopened: `Refusal` of the files that are not opened, for example pipes, which could block;
        `Refusal.NONE` for the others.
      check_size: files in a bucket whose size is looked up before they are read.
      key: a value that changes whenever the files change; its repr names the stored index.
      options: see `IndexOptions`.
    """

    def scan() -> Indexed:
        chosen = np.flatnonzero(unopened == Refusal.NONE)
        if options.decoder == PILLOW:
            rows = _columns_by_pillow(images, chosen, options)
        else:
            rows = _columns_by_tensorflow(images, chosen, options, check_size)
        table = np.zeros((len(images), COLUMNS), np.int64)
        table[:, ORIENTATION] = 1
        table[:, REFUSAL] = np.where(unopened == Refusal.NONE, Refusal.UNREADABLE, unopened)
        table[rows[:, 0]] = rows[:, 1:]
        options.inspector.decode_postponed(table, reader_of_bytes(images))
        return _completed(images, labels, table)

    opened = unopened == Refusal.NONE
    return _load_or_scan(scan, opened, images.files, len(images), key, options)


def _columns_by_tensorflow(
    images: EncodedImages,
    chosen: Int64[np.ndarray, " M"],
    options: IndexOptions,
    check_size: Bool[np.ndarray, " N"],
) -> Int64[np.ndarray, "N columns"]:
    """Position and columns of the files that can be read, in any order."""
    tf, inspector = import_tensorflow(), options.inspector
    paths = tf.constant(images.files[images.file_id])
    too_large = [0, 0, 0, 1, int(Refusal.LARGE_FILE), 0]

    def inspected(path: "tf.Tensor") -> "tf.Tensor":
        return tf.stack(inspector.columns_in_graph(tf.io.read_file(path)))

    def row(i: "tf.Tensor", unknown: "tf.Tensor") -> "tf.Tensor":
        path = tf.gather(paths, i)
        if check_size.any():
            rejected = tf.constant(too_large, tf.int64)
            is_large = unknown & tf.numpy_function(_is_too_large, [path], tf.bool)
            columns = tf.cond(is_large, lambda: rejected, lambda: inspected(path))
        else:
            columns = inspected(path)
        return tf.concat([i[None], columns], 0)

    rows = tf.data.Dataset.from_tensor_slices((chosen, check_size[chosen])).map(
        without_autograph(row), num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    )
    # Files that cannot be read are dropped.
    return collect(rows.ignore_errors(), len(chosen), options.split_name)


def _is_too_large(path: bytes) -> np.bool:
    """Whether a file in a bucket is rejected for its size, which takes a request."""
    return np.bool(import_tensorflow().io.gfile.stat(path).length > MAX_FILE_BYTES)


def _columns_by_pillow(
    images: EncodedImages, chosen: Int64[np.ndarray, " M"], options: IndexOptions
) -> Int64[np.ndarray, "N columns"]:
    """Like `_columns_by_tensorflow`, without TensorFlow."""

    def columns(i: int) -> list[int] | None:
        try:
            contents = read_file(images, i)
        except OSError:
            return None
        return [i, *options.inspector.columns(contents).tolist()]

    rows = with_progress(
        on_threads(columns, chosen.tolist(), usable_cores()),
        total=len(chosen),
        description=f"index {options.split_name}",
        unit="images",
        size_of=lambda row: 1,
        log=_log,
    )
    readable = [row for row in rows if row is not None]
    return np.array(readable, np.int64).reshape(-1, 1 + COLUMNS)


def index_records(
    shards: list[str],
    parse: Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]],
    *,
    feature: str,
    examples: int,
    key: Any,
    options: IndexOptions,
) -> Indexed:
    """Finds all records of TFRecord files, in the order of files and records.

    Args:
      shards: paths of the files.
      parse: maps a record to its encoded image and its label (int64), in TensorFlow operations.
      feature: key of the image in a record.
      examples: number of records, for the progress bar only.
      key: see `index_files`.
      options: see `IndexOptions`.
    """

    def scan() -> Indexed:
        tf, inspector = import_tensorflow(), options.inspector

        def records_of(shard: "tf.Tensor") -> "tf.data.Dataset":
            records = tf.data.TFRecordDataset(tf.gather(tf.constant(shards), shard))
            return records.enumerate().map(lambda i, record: row_of(shard, i, record))

        def row_of(shard: "tf.Tensor", i: "tf.Tensor", record: "tf.Tensor") -> "tf.Tensor":
            contents, label = parse(record)
            length = tf.cast(tf.strings.length(record), tf.int64)
            label = tf.cast(label, tf.int64)
            return tf.stack([shard, i, length, label, *inspector.columns_in_graph(contents)])

        rows = tf.data.Dataset.range(len(shards)).interleave(
            records_of,
            cycle_length=_PARALLEL_SHARDS,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        with damaged_records_named(shards):
            table = collect(rows, examples, options.split_name)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        images = _record_images(table[:, :3], shards, feature)
        columns = table[:, 4:].copy()
        inspector.decode_postponed(columns, reader_of_bytes(images))
        return _completed(images, table[:, 3].astype(np.int32), columns)

    files = np.array([os.fsencode(path) for path in shards])
    return _load_or_scan(scan, np.True_, files, None, key, options)


def _load_or_scan(
    scan: Callable[[], Indexed],
    opened: np.ndarray | np.bool,
    files: np.ndarray,
    count: int | None,
    key: Any,
    options: IndexOptions,
) -> Indexed:
    def inspect_again(indexed: Indexed) -> Indexed:
        return _inspect_again(indexed, opened, options)

    return load_or_scan(
        scan,
        inspect_again,
        files=files,
        count=count,
        key=key,
        index_dir=options.index_dir,
        split_name=options.split_name,
    )


def _inspect_again(
    indexed: Indexed, opened: np.ndarray | np.bool, options: IndexOptions
) -> Indexed:
    """Inspects the rejected images again; returns the same object if nothing changed."""
    columns = np.zeros((len(indexed.labels), COLUMNS), np.int64)
    columns[:, [HEIGHT, WIDTH]] = indexed.images.sizes
    columns[:, IS_JPEG] = indexed.images.is_jpeg
    columns[:, ORIENTATION] = indexed.images.orientation
    columns[:, REFUSAL], columns[:, DIGEST] = indexed.refusal, indexed.digest
    read = reader_of_bytes(indexed.images)
    for i in np.flatnonzero((indexed.refusal != Refusal.NONE) & opened).tolist():
        with contextlib.suppress(OSError, RefusedImageError):  # still cannot be read
            columns[i] = inspect_bytes(read(i))
    changed = columns[:, REFUSAL] != indexed.refusal
    if not changed.any():
        return indexed
    _log.info("%d images of %s that were rejected have changed", changed.sum(), options.split_name)
    return _completed(indexed.images, indexed.labels, columns)


def _record_images(
    table: Int64[np.ndarray, "N 3"], shards: list[str], feature: str
) -> EncodedImages:
    """The records of sorted rows (shard, position, length), without sizes."""
    shard, ends = table[:, 0], np.cumsum(table[:, 2] + _RECORD_FRAME_BYTES)
    starts = np.concatenate([[0], ends[:-1]])
    first = np.searchsorted(shard, np.arange(len(shards)))  # first record of each shard
    return EncodedImages(
        files=np.array([os.fsencode(path) for path in shards]),
        file_id=shard.astype(np.int32),
        offset=starts - starts[np.minimum(first, len(starts) - 1)][shard],
        sizes=np.zeros((len(table), 2), np.int32),
        is_jpeg=np.zeros(len(table), bool),
        orientation=np.ones(len(table), np.uint8),
        feature=feature,
    )


def _completed(
    images: EncodedImages, labels: Int32[np.ndarray, " N"], columns: Int64[np.ndarray, "N columns"]
) -> Indexed:
    """Adds the columns of `inspection.py`."""
    completed = EncodedImages(
        images.files,
        images.file_id,
        images.offset,
        columns[:, [HEIGHT, WIDTH]].astype(np.int32),
        columns[:, IS_JPEG] > 0,
        columns[:, ORIENTATION].astype(np.uint8),
        images.feature,
    )
    return Indexed(completed, labels, columns[:, REFUSAL].astype(np.uint8), columns[:, DIGEST])


def reader_of_bytes(images: EncodedImages) -> Callable[[int], bytes]:
    """A function that reads an image.

    It raises an OSError if that is not possible, and a RefusedImageError if a file in a bucket is
    too large.
    """
    if images.are_local_files:
        return lambda i: read_file(images, i)
    tf, contents_of = import_tensorflow(), reader(images)

    def read(i: int) -> bytes:
        with reading_errors():
            if not images.feature and _is_too_large(images.path(i)):
                raise RefusedImageError(Refusal.LARGE_FILE)
            contents: Any = contents_of(tf.constant([i], tf.int64))[0]
            return contents.numpy()

    return read
