"""Reading a prepared TFDS dataset: into arrays, or as an index of its records."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from imta_jax.config import HOLD_OUT
from imta_jax.data.channel_statistics import PUBLISHED_STATISTICS
from imta_jax.data.decoding import png_header
from imta_jax.data.pipeline.indexing import IndexOptions, index_records
from imta_jax.data.source_validation import SourceData, SourceSplit
from imta_jax.data.sources.encoded_split import source_split
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.data.sources.storage import file_states
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

_EXAMPLES_PER_CHUNK = 1024
_MAX_REASON = 200  # characters of an exception's message
_MAX_NAMED_FILES = 3
# Bit depth 8 and color type of a PNG without interlacing, by the number of channels.
_HEADER_ENDS = {1: bytes([8, 0, 0, 0, 0]), 3: bytes([8, 2, 0, 0, 0])}
# TFDS's errors for a split that is not prepared.
_NOT_PREPARED = (AssertionError, KeyError, FileNotFoundError)


class _Reader(NamedTuple):
    """Arguments with which all splits of a dataset are read.

    Attributes:
      builder: TFDS builder.
      image_key: name of the image feature.
      label_key: name of the label feature.
      request: the request.
      not_prepared: makes the error for data that are not prepared, from a reason.
    """

    builder: Any
    image_key: str
    label_key: str
    request: SourceRequest
    not_prepared: Callable[[str], Exception]


def read_builder(
    builder: Any, request: SourceRequest, not_prepared: Callable[[str], Exception]
) -> SourceData:
    """Reads the splits of a dataset that TFDS prepared.

    Args:
      builder: TFDS builder.
      request: which splits to read, and whether images stay encoded.
      not_prepared: makes the error for data that are not prepared, from a reason.

    Raises:
      ValueError: no images with class labels, an unknown split, images of different sizes that are
        to become arrays, or a file format without random access.
    """
    reader = _Reader(builder, *feature_keys(builder), request, not_prepared)
    splits = list(builder.info.splits) or _requested_splits(request)
    chosen = choose_splits(request, splits, f"TFDS dataset {builder.name}")
    _check_format(builder)
    _check_shard_lengths(builder)
    if not request.encoded:
        check_one_shape(builder, reader.image_key)
    read = _read_indexed if request.encoded else _read_arrays
    splits_by_role = {role: read(reader, split) for role, split in chosen.items()}
    names = tuple(builder.info.features[reader.label_key].names)
    # Published statistics belong to the dataset's usual splits, whatever part of them is read.
    return SourceData(builder.name, splits_by_role, names, PUBLISHED_STATISTICS.get(builder.name))


@contextlib.contextmanager
def described_by_tfds(problem: str, remedy: str) -> Iterator[None]:
    """Turns errors of TFDS about the description of a dataset into one type.

    Args:
      problem: the dataset, the start of the message.
      remedy: the end of the message.

    Raises:
      InputError: in place of the exceptions of TFDS and of protocol buffers, which are of many
        types. Those of file systems and AssertionErrors pass.
    """
    others = (AssertionError, OSError, RuntimeError, import_tensorflow().errors.OpError)
    try:
        yield
    except Exception as error:
        of_files = isinstance(error, IsADirectoryError) or _is_from_tfds(error)
        if isinstance(error, others) and not of_files:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]
        raise InputError(f"{problem} ({reason}); {remedy}") from error


def _is_from_tfds(error: Exception) -> bool:
    """Whether it is a class of TFDS, for example `DatasetInfoFileError`, which is an OSError."""
    return type(error).__module__.startswith("tensorflow_datasets")


def _requested_splits(request: SourceRequest) -> list[str]:
    """Split names for a dataset that is not prepared; reading it then raises the clear error."""
    named = {request.train_split, request.validation_split, request.test_split}
    return ["train", "test", *sorted(named - {"train", "test", "auto", HOLD_OUT})]


def feature_keys(builder: Any) -> tuple[str, str]:
    """The names of a dataset's image and label features.

    Raises:
      ValueError: no images with one class label each.
    """
    import tensorflow_datasets as tfds

    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None:  # unknown for a dataset that is read without its code
        candidates = ([key for key in features if type(features[key]) is kind] for kind in kinds)
        keys = tuple(keys_of_kind[0] for keys_of_kind in candidates if len(keys_of_kind) == 1)
    if [type(features[key]) for key in keys] != kinds:
        raise InputError(
            f"TFDS dataset {builder.name} has the features {', '.join(features)}; expected images"
            " with one class label each"
        )
    return keys


def _check_format(builder: Any) -> None:
    file_format = builder.info.file_format.value
    if file_format != "tfrecord":
        raise InputError(
            f"TFDS dataset {builder.name} has the file format {file_format}, expected tfrecord;"
            " prepare it in another folder with file_format='tfrecord'"
        )


def _check_shard_lengths(builder: Any) -> None:
    for name, info in builder.info.splits.items():
        if any(length < 0 for length in info.shard_lengths):
            raise InputError(
                f"{builder.data_dir}/dataset_info.json: shardLengths of split {name!r} is"
                f" {list(info.shard_lengths)}, expected none below 0; copy the file again, or"
                " prepare the dataset again"
            )


def check_one_shape(builder: Any, image_key: str) -> None:
    """Raises an InputError unless all images of a dataset have one shape."""
    shape = builder.info.features[image_key].shape
    if len(shape) != 3 or None in shape:
        raise InputError(
            f"TFDS dataset {builder.name}: {image_key} has shape {shape}, expected one height,"
            " width and number of channels for all images; for images of different sizes set"
            " config.data.preprocessing=random_area_crop, as configs/imagenet.py does"
        )


def _read_arrays(reader: _Reader, split: str) -> SourceSplit:
    builder, keys = reader.builder, (reader.image_key, reader.label_key)
    channels = builder.info.features[reader.image_key].shape[-1]
    errors = import_tensorflow().errors
    try:
        if channels in _HEADER_ENDS and not _has_plain_pngs_only(reader, split, channels):
            return _read_indexed(reader, split, channels)
        pairs = _as_dataset(reader, split).map(lambda example: tuple(example[key] for key in keys))
        chunks = list(pairs.batch(_EXAMPLES_PER_CHUNK).as_numpy_iterator())
    # A damaged image or another size; more or fewer records than dataset_info.json lists; a damaged
    # record, whose bytes TensorFlow quotes as if they were UTF-8.
    except (
        errors.InvalidArgumentError,
        errors.FailedPreconditionError,
        errors.DataLossError,
        UnicodeDecodeError,
    ):
        return _read_indexed(reader, split, channels)
    if not chunks:
        raise InputError(f"TFDS dataset {builder.name}: split {split!r} has 0 images")
    images, labels = zip(*chunks, strict=True)
    return SourceSplit(np.concatenate(images), np.concatenate(labels))


def _as_dataset(reader: _Reader, split: str, decoders: dict[str, Any] | None = None) -> Any:
    try:
        return reader.builder.as_dataset(split=split, decoders=decoders)
    except _NOT_PREPARED as error:
        raise reader.not_prepared("it is not prepared there") from error


def _has_plain_pngs_only(reader: _Reader, split: str, channels: int) -> bool:
    """Whether all images are 8-bit PNGs without metadata, which every decoder decodes alike.

    TFDS encodes arrays in this way. It stores files unchanged.
    """
    import tensorflow_datasets as tfds

    tf, key = import_tensorflow(), reader.image_key
    # Parts and the positions at which they start. Metadata would be before the pixels in IDAT.
    parts = [(0, png_header.SIGNATURE), (24, _HEADER_ENDS[channels]), (37, b"IDAT")]

    def is_plain(example: dict[str, "tf.Tensor"]) -> "tf.Tensor":
        contents = tf.strings.join([example[key], bytes(41)])  # at least as long as the parts
        matches = [tf.strings.substr(contents, i, len(part)) == part for i, part in parts]
        return tf.reduce_all(matches)

    dataset = _as_dataset(reader, split, {key: tfds.decode.SkipDecoding()})
    if dataset.element_spec[key].dtype != tf.string:  # synthetic images of tfds.testing.mock_data
        return True
    plain = dataset.map(is_plain).batch(_EXAMPLES_PER_CHUNK).as_numpy_iterator()
    return all(chunk.all() for chunk in plain)


def _read_indexed(reader: _Reader, split: str, channels: int = 3) -> SourceSplit:
    import tensorflow_datasets as tfds

    tf, builder, request = import_tensorflow(), reader.builder, reader.request
    keys = (reader.image_key, reader.label_key)
    try:
        info, features = builder.info.splits[split], builder.info.features
        written = tf.io.gfile.stat(f"{builder.data_dir}/dataset_info.json")
    except (*_NOT_PREPARED, tf.errors.NotFoundError) as error:
        raise reader.not_prepared("it is not prepared there") from error
    shards = [str(path) for path in info.filepaths]
    if not shards:
        raise InputError(f"TFDS dataset {builder.name}: split {split!r} has 0 images")
    split_name = f"{builder.name} {split}"

    def parse(record: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        example = features.deserialize_example(
            record, decoders={reader.image_key: tfds.decode.SkipDecoding()}
        )
        return example[reader.image_key], example[reader.label_key]

    indexed = index_records(
        shards,
        parse,
        feature=reader.image_key,
        examples=info.num_examples,
        key=("records", keys, written.mtime_nsec, shards, file_states(shards)),
        options=IndexOptions(request.index_dir, split_name, request.memory_limit_gb),
    )
    record_counts = np.bincount(indexed.images.file_id, minlength=len(shards)).tolist()
    _check_record_counts(split_name, shards, record_counts, info.shard_lengths)
    return source_split(indexed, request, split_name, channels)


def _check_record_counts(
    split_name: str, shards: Sequence[str], counts: Sequence[int], expected: Sequence[int]
) -> None:
    """Raises an InputError unless each file has as many records as dataset_info.json lists."""
    if len(expected) != len(counts):  # a dataset of an older TFDS lists none
        return
    differing = [
        f"{path} has {count} instead of {length}"
        for path, count, length in zip(shards, counts, expected, strict=True)
        if count != length
    ]
    if differing:
        more = f" and {len(differing) - _MAX_NAMED_FILES} more" * (
            len(differing) > _MAX_NAMED_FILES
        )
        raise InputError(
            f"{split_name} has {sum(counts)} records, but its dataset_info.json lists"
            f" {sum(expected)}: {', '.join(differing[:_MAX_NAMED_FILES])}{more}; copy these files"
            " again, or prepare the dataset again"
        )
