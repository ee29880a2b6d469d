"""The index of encoded images: sizes, labels, record offsets and which images do not decode.

One pass reads each image once, before training starts, and the result is stored. Random access,
exact splits and crops that are planned ahead depend on it. Indexing ImageNet takes some minutes on
a large host.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import InputError
from imta_jax.runtime.files import replacing
from imta_jax.runtime.progress_bar import with_progress

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_FORMAT = 1  # of stored indexes; after a change they are computed again
_IMAGES_PER_CHUNK = 64
_RECORD_FRAME_BYTES = 16  # of a TFRecord: its length and two checksums
_PARALLEL_SHARDS = 16
# What NumPy raises for a damaged .npz file or one with other arrays.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, zipfile.BadZipFile)


class Indexed(NamedTuple):
    """All N encoded images of a split, including those that do not decode.

    Attributes:
      images: the images.
      labels: int32 [N].
      decodable: bool [N].
    """

    images: EncodedImages
    labels: np.ndarray
    decodable: np.ndarray


def index_files(
    images: EncodedImages, labels: np.ndarray, key: Any, index_dir: str, where: str
) -> Indexed:
    """Finds the sizes of image files.

    Args:
      images: the files, without sizes.
      labels: int32 [N].
      key: a value that changes whenever the files change; its repr names the stored index.
      index_dir: folder of stored indexes; "" stores nothing.
      where: the split, for progress and log.
    """

    def scan() -> Indexed:
        tf = import_tensorflow()
        ids = tf.data.Dataset.range(len(images))
        paths = tf.constant(images.files[images.file_id])
        properties = ids.map(
            lambda i: (i, *_properties_or_zeros(tf.io.read_file(tf.gather(paths, i)))),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        # Files that cannot be read are dropped here and keep zeros below.
        table = _collect(properties.ignore_errors(), len(images), where)
        found = np.zeros((len(images), 4), np.int32)
        found[table[:, 0]] = table[:, 1:]
        return _completed(images, labels, found)

    return _load_or_scan(scan, key, index_dir, where)


def index_records(
    shards: list[str],
    parse: Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]],
    *,
    feature: str,
    examples: int,
    key: Any,
    index_dir: str,
    where: str,
) -> Indexed:
    """Finds all records of TFRecord files, in the order of files and records.

    Args:
      shards: paths of the files.
      parse: maps a record to its encoded image and its label (int64), in TensorFlow operations.
      feature: key of the image in a record.
      examples: number of records, for the progress bar only.
      key: see `index_files`.
      index_dir: see `index_files`.
      where: see `index_files`.
    """

    def scan() -> Indexed:
        tf = import_tensorflow()

        def records_of(shard: "tf.Tensor") -> "tf.data.Dataset":
            records = tf.data.TFRecordDataset(tf.gather(tf.constant(shards), shard))
            return records.enumerate().map(
                lambda i, record: (shard, i, tf.strings.length(record), *label_and_size(record))
            )

        def label_and_size(record: "tf.Tensor") -> tuple["tf.Tensor", ...]:
            contents, label = parse(record)
            return label, *_properties_or_zeros(contents)

        properties = tf.data.Dataset.range(len(shards)).interleave(
            records_of,
            cycle_length=_PARALLEL_SHARDS,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        table = _collect(properties, examples, where)
        return _from_records(table[np.lexsort((table[:, 1], table[:, 0]))], shards, feature)

    return _load_or_scan(scan, key, index_dir, where)


def _from_records(table: np.ndarray, shards: list[str], feature: str) -> Indexed:
    """The index of sorted rows (shard, position, length, label, height, width, JPEG, decodes)."""
    shard, ends = table[:, 0], np.cumsum(table[:, 2] + _RECORD_FRAME_BYTES)
    starts = np.concatenate([[0], ends[:-1]])
    first = np.searchsorted(shard, np.arange(len(shards)))  # first record of each shard
    images = EncodedImages(
        files=np.array([os.fsencode(path) for path in shards]),
        file_id=shard.astype(np.int32),
        offset=starts - starts[np.minimum(first, len(starts) - 1)][shard],
        sizes=np.zeros((len(table), 2), np.int32),
        is_jpeg=np.zeros(len(table), bool),
        feature=feature,
    )
    return _completed(images, table[:, 3].astype(np.int32), table[:, 4:].astype(np.int32))


def _completed(images: EncodedImages, labels: np.ndarray, properties: np.ndarray) -> Indexed:
    """Adds (height, width, is JPEG, decodes), int32 [N, 4]."""
    completed = EncodedImages(
        images.files,
        images.file_id,
        images.offset,
        properties[:, :2],
        properties[:, 2] > 0,
        images.feature,
    )
    return Indexed(completed, labels, properties[:, 3] > 0)


def _properties_or_zeros(contents: "tf.Tensor") -> tuple["tf.Tensor", ...]:
    """(height, width, is JPEG, decodes); zeros if the image does not decode."""
    tf = import_tensorflow()
    # A dataset of one element with `ignore_errors` is a try statement within the graph.
    attempt = tf.data.Dataset.from_tensors(contents).map(_properties).ignore_errors()
    failed = tf.data.Dataset.from_tensors(tf.zeros([4], tf.int32))
    return tuple(tf.unstack(attempt.concatenate(failed).take(1).get_single_element()))


def _properties(contents: "tf.Tensor") -> "tf.Tensor":
    tf = import_tensorflow()

    def of_jpeg() -> "tf.Tensor":
        shape = tf.io.extract_jpeg_shape(contents)
        # Decoding at an eighth of the resolution decompresses all data and detects truncation.
        pixels = tf.size(tf.io.decode_jpeg(contents, channels=3, ratio=8))
        return tf.stack([shape[0], shape[1], 1, tf.cast(pixels > 0, tf.int32)])

    def of_other_format() -> "tf.Tensor":
        shape = tf.shape(tf.io.decode_image(contents, channels=3, expand_animations=False))
        return tf.stack([shape[0], shape[1], 0, 1])

    return tf.cond(tf.io.is_jpeg(contents), of_jpeg, of_other_format)


def _collect(properties: "tf.data.Dataset", examples: int, where: str) -> np.ndarray:
    """Runs a dataset of scalars with a progress bar; int64 [N, columns]."""
    tf = import_tensorflow()
    rows = properties.map(lambda *row: tf.stack([tf.cast(value, tf.int64) for value in row]))
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
    width = spec.shape[0]
    return np.concatenate([np.zeros((0, width), np.int64), *found])


def _load_or_scan(scan: Callable[[], Indexed], key: Any, index_dir: str, where: str) -> Indexed:
    """Loads the index that is stored under `key`, or computes and stores it."""
    if not index_dir:
        return scan()
    if "://" in index_dir:
        raise InputError(f"config.data.index_dir is {index_dir!r}, expected a local folder")
    name = hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:24]
    try:
        path = Path(index_dir).expanduser() / f"{name}.npz"
        return _load(path)
    except FileNotFoundError:
        pass
    except RuntimeError as error:  # the home folder is unknown
        _log.warning("cannot store the index of %s in %s (%s)", where, index_dir, error)
        return scan()
    except _DAMAGED as error:
        _log.warning("cannot read the index %s (%s); computing it again", path, error)
    _log.info("reading every image of %s once, to store an index in %s", where, path)
    indexed = scan()
    try:
        _save(path, indexed)
    except OSError as error:
        _log.warning("cannot store the index of %s in %s (%s)", where, path, error)
    return indexed


def _save(path: Path, indexed: Indexed) -> None:
    images = {name: getattr(indexed.images, name) for name in _fields()}
    # Several processes may write the same index.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, labels=indexed.labels, decodable=indexed.decodable, **images)


def _load(path: Path) -> Indexed:
    # If NumPy opened the file, it would not close it after an error.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        images = {name: archive[name] for name in _fields()}
        images["feature"] = str(images["feature"])
        return Indexed(EncodedImages(**images), archive["labels"], archive["decodable"])


def _fields() -> Iterable[str]:
    return EncodedImages.__dataclass_fields__
