"""The index of encoded images: one pass that reads each of them once, and is then kept.

It finds what training needs to know before it starts: the size of every image, its label, where
its record begins, and which do not decode. Reading at random, exact splits and crops that are
planned ahead all rest on it. The paper's ImageNet takes some minutes on a large host, once.
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
from imta_jax.runtime.files import replacing
from imta_jax.runtime.progress_bar import with_progress

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_FORMAT = 1  # of the kept files; another one makes them anew
_NOTED_AT_ONCE = 64  # images per step of the pass
_RECORD_FRAME_BYTES = 16  # around a record: its length and two checksums
_SHARDS_AT_ONCE = 16
# How NumPy says that what it reads is no whole .npz of the wanted arrays.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, zipfile.BadZipFile)


class Indexed(NamedTuple):
    """N encoded images of a split as they were found, good or not.

    Attributes:
      images: all of them.
      labels: int32 [N].
      decodable: bool [N].
    """

    images: EncodedImages
    labels: np.ndarray
    decodable: np.ndarray


def index_files(
    images: EncodedImages, labels: np.ndarray, key: Any, index_dir: str, where: str
) -> Indexed:
    """Completes images, one per file, by their sizes.

    Args:
      images: with files but without sizes.
      labels: int32 [N].
      key: changes whenever the files do; its repr names the kept index.
      index_dir: where it is kept; "" for nowhere.
      where: the split, for progress and log.
    """

    def scan() -> Indexed:
        tf = import_tensorflow()
        ids = tf.data.Dataset.range(len(images))
        paths = tf.constant(images.files[images.file_id])
        notes = ids.map(
            lambda i: (i, *_describe_or_none(tf.io.read_file(tf.gather(paths, i)))),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        # A file that cannot even be read drops out here, and keeps its zeros below.
        table = _collect(notes.ignore_errors(), len(images), where)
        found = np.zeros((len(images), 4), np.int32)
        found[table[:, 0]] = table[:, 1:]
        return _completed(images, labels, found)

    return _kept(scan, key, index_dir, where)


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
      parse: a record -> its encoded image and its label (int64), as TensorFlow operations.
      feature: the key of the image in a record.
      examples: how many records there are; for the progress only.
      key: as in `index_files`, as the next two.
      index_dir: where the index is kept.
      where: the split.
    """

    def scan() -> Indexed:
        tf = import_tensorflow()

        def records_of(shard: "tf.Tensor") -> "tf.data.Dataset":
            records = tf.data.TFRecordDataset(tf.gather(tf.constant(shards), shard))
            return records.enumerate().map(
                lambda i, record: (shard, i, tf.strings.length(record), *described(record))
            )

        def described(record: "tf.Tensor") -> tuple["tf.Tensor", ...]:
            contents, label = parse(record)
            return label, *_describe_or_none(contents)

        notes = tf.data.Dataset.range(len(shards)).interleave(
            records_of,
            cycle_length=_SHARDS_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        table = _collect(notes, examples, where)
        return _from_records(table[np.lexsort((table[:, 1], table[:, 0]))], shards, feature)

    return _kept(scan, key, index_dir, where)


def _from_records(table: np.ndarray, shards: list[str], feature: str) -> Indexed:
    """From rows of (shard, position, length, label, height, width, is JPEG, decodes), in order."""
    shard, ends = table[:, 0], np.cumsum(table[:, 2] + _RECORD_FRAME_BYTES)
    starts = np.concatenate([[0], ends[:-1]])
    first = np.searchsorted(shard, np.arange(len(shards)))  # of each shard
    images = EncodedImages(
        files=np.array([os.fsencode(path) for path in shards]),
        file_id=shard.astype(np.int32),
        offset=starts - starts[np.minimum(first, len(starts) - 1)][shard],
        sizes=np.zeros((len(table), 2), np.int32),
        is_jpeg=np.zeros(len(table), bool),
        feature=feature,
    )
    return _completed(images, table[:, 3].astype(np.int32), table[:, 4:].astype(np.int32))


def _completed(images: EncodedImages, labels: np.ndarray, found: np.ndarray) -> Indexed:
    """With (height, width, is JPEG, decodes) of each image."""
    whole = EncodedImages(
        images.files, images.file_id, images.offset, found[:, :2], found[:, 2] > 0, images.feature
    )
    return Indexed(whole, labels, found[:, 3] > 0)


def _describe_or_none(contents: "tf.Tensor") -> tuple["tf.Tensor", ...]:
    """(height, width, is JPEG, decodes), zeros for what does not decode: a try within the graph."""
    tf = import_tensorflow()
    attempt = tf.data.Dataset.from_tensors(contents).map(_describe).ignore_errors()
    failed = tf.data.Dataset.from_tensors(tf.zeros([4], tf.int32))
    return tuple(tf.unstack(attempt.concatenate(failed).take(1).get_single_element()))


def _describe(contents: "tf.Tensor") -> "tf.Tensor":
    tf = import_tensorflow()

    def of_jpeg() -> "tf.Tensor":
        shape = tf.io.extract_jpeg_shape(contents)
        # Everything is decompressed, but into an eighth of the pixels: what is cut short shows.
        pixels = tf.size(tf.io.decode_jpeg(contents, channels=3, ratio=8))
        return tf.stack([shape[0], shape[1], 1, tf.cast(pixels > 0, tf.int32)])

    def of_other() -> "tf.Tensor":
        shape = tf.shape(tf.io.decode_image(contents, channels=3, expand_animations=False))
        return tf.stack([shape[0], shape[1], 0, 1])

    return tf.cond(tf.io.is_jpeg(contents), of_jpeg, of_other)


def _collect(notes: "tf.data.Dataset", examples: int, where: str) -> np.ndarray:
    """int64 [N, columns] of a dataset of scalars."""
    tf = import_tensorflow()
    rows = notes.map(lambda *row: tf.stack([tf.cast(value, tf.int64) for value in row]))
    chunks = with_progress(
        rows.batch(_NOTED_AT_ONCE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator(),
        total=examples,
        description=f"index {where}",
        unit="images",
        size_of=len,
        log=_log,
    )
    found = list(chunks)
    width = rows.element_spec.shape[0]
    return np.concatenate([np.zeros((0, width), np.int64), *found])


def _kept(scan: Callable[[], Indexed], key: Any, index_dir: str, where: str) -> Indexed:
    """The index kept under `key`, or a new one, which is then kept."""
    if not index_dir:
        return scan()
    if "://" in index_dir:
        raise ValueError(f"config.data.index_dir is {index_dir!r}, expected a folder of this host")
    name = hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:24]
    try:
        path = Path(index_dir).expanduser() / f"{name}.npz"
        return _load(path)
    except FileNotFoundError:
        pass
    except RuntimeError as error:  # there is no home to put it into
        _log.warning("the index of %s cannot be kept in %s (%s)", where, index_dir, error)
        return scan()
    except _DAMAGED as error:
        _log.warning("the index %s cannot be read (%s); making it anew", path, error)
    _log.info("reading every image of %s once, for an index that is kept in %s", where, path)
    indexed = scan()
    try:
        _save(path, indexed)
    except OSError as error:
        _log.warning("the index of %s cannot be kept in %s (%s)", where, path, error)
    return indexed


def _save(path: Path, indexed: Indexed) -> None:
    images = {name: getattr(indexed.images, name) for name in _fields()}
    # Several processes may write the same index.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, labels=indexed.labels, decodable=indexed.decodable, **images)


def _load(path: Path) -> Indexed:
    # Opened here, since NumPy leaves what it cannot read open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        images = {name: archive[name] for name in _fields()}
        images["feature"] = str(images["feature"])
        return Indexed(EncodedImages(**images), archive["labels"], archive["decodable"])


def _fields() -> Iterable[str]:
    return EncodedImages.__dataclass_fields__
