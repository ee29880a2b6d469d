"""Reading a prepared TFDS dataset: into arrays, or as an index of its records."""

from collections.abc import Callable
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
# Parts of a PNG without metadata and the positions at which they start.
_PLAIN_PNG = (
    (0, png_header.SIGNATURE),
    (24, bytes([8, 2, 0, 0, 0])),  # 8-bit RGB without interlacing
    (37, b"IDAT"),  # the first chunk after the header
)
# TFDS's errors for a split that is not prepared.
_NOT_PREPARED = (AssertionError, KeyError, FileNotFoundError)


class _Reader(NamedTuple):
    """What reading a split needs.

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
      ValueError: No images with class labels, an unknown split, images of different sizes that are
        to become arrays, or a file format without random access.
    """
    reader = _Reader(builder, *feature_keys(builder), request, not_prepared)
    splits = list(builder.info.splits) or _requested_splits(request)
    chosen = choose_splits(request, splits, f"TFDS dataset {builder.name}")
    _check_format(builder)
    if not request.encoded:
        check_one_shape(builder, reader.image_key)
    read = _read_indexed if request.encoded else _read_arrays
    found = {role: read(reader, split) for role, split in chosen.items()}
    names = tuple(builder.info.features[reader.label_key].names)
    # Published statistics belong to the dataset's usual splits, whatever part of them is read.
    return SourceData(builder.name, found, names, PUBLISHED_STATISTICS.get(builder.name))


def _requested_splits(request: SourceRequest) -> list[str]:
    """Split names for a dataset that is not prepared; reading it then raises the clear error."""
    named = {request.train_split, request.validation_split, request.test_split}
    return ["train", "test", *sorted(named - {"train", "test", "auto", HOLD_OUT})]


def feature_keys(builder: Any) -> tuple[str, str]:
    """The names of a dataset's image and label features.

    Raises:
      ValueError: No images with one class label each.
    """
    import tensorflow_datasets as tfds

    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None:  # unknown for a dataset that is read without its code
        candidates = ([key for key in features if type(features[key]) is kind] for kind in kinds)
        keys = tuple(found[0] for found in candidates if len(found) == 1)
    if [type(features[key]) for key in keys] != kinds:
        raise InputError(
            f"TFDS dataset {builder.name} has the features {', '.join(features)}; expected images"
            " with one class label each"
        )
    return keys


def _check_format(builder: Any) -> None:
    found = builder.info.file_format.value
    if found != "tfrecord":
        raise InputError(
            f"TFDS dataset {builder.name} has the file format {found}, expected tfrecord; prepare"
            " it in another folder with file_format='tfrecord'"
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
    if channels == 3 and not _has_plain_pngs_only(reader, split):
        return _read_indexed(reader, split)
    decoders = _exact_jpeg_decoders(reader) if channels == 1 else None
    dataset = _as_dataset(reader, split, decoders)
    pairs = dataset.map(lambda example: tuple(example[key] for key in keys))
    chunks = list(pairs.batch(_EXAMPLES_PER_CHUNK).as_numpy_iterator())
    if not chunks:
        raise InputError(f"TFDS dataset {builder.name}: split {split!r} has 0 images")
    images, labels = zip(*chunks, strict=True)
    return SourceSplit(np.concatenate(images), np.concatenate(labels))


def _as_dataset(reader: _Reader, split: str, decoders: dict[str, Any] | None) -> Any:
    try:
        return reader.builder.as_dataset(split=split, decoders=decoders)
    except _NOT_PREPARED as error:
        raise reader.not_prepared("it is not prepared there") from error


def _has_plain_pngs_only(reader: _Reader, split: str) -> bool:
    """Whether all images are 8-bit RGB PNGs without metadata, which every decoder decodes alike.

    TFDS encodes arrays in this way. It stores files unchanged.
    """
    import tensorflow_datasets as tfds

    tf, key = import_tensorflow(), reader.image_key

    def is_plain(example: dict[str, "tf.Tensor"]) -> "tf.Tensor":
        contents = tf.strings.join([example[key], bytes(_PLAIN_PNG[-1][0] + 4)])  # not too short
        found = [
            tf.strings.substr(contents, start, len(value)) == value for start, value in _PLAIN_PNG
        ]
        return tf.reduce_all(found)

    dataset = _as_dataset(reader, split, {key: tfds.decode.SkipDecoding()})
    plain = dataset.map(is_plain).batch(_EXAMPLES_PER_CHUNK).as_numpy_iterator()
    return all(chunk.all() for chunk in plain)


def _exact_jpeg_decoders(reader: _Reader) -> dict[str, Any] | None:
    """Exact decoding of grayscale JPEGs; the fast default, which TFDS uses, is off by some levels.

    Raises:
      InputError: EXIF orientations are to be applied. An export would apply them.
    """
    import tensorflow_datasets as tfds

    name, feature = reader.builder.name, reader.builder.info.features[reader.image_key]
    if feature.encoding_format not in ("jpeg", None):
        return None
    if reader.request.exif_orientation != "ignore":
        raise InputError(
            f"config.data.exif_orientation={reader.request.exif_orientation} is not supported for"
            f" the grayscale arrays of TFDS dataset {name}; set it to ignore"
        )

    def decode(contents: "tf.Tensor", feature: Any) -> "tf.Tensor":
        tf, channels = import_tensorflow(), feature.shape[-1]
        return tf.cond(
            tf.io.is_jpeg(contents),
            lambda: tf.io.decode_jpeg(contents, channels, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_image(contents, channels, expand_animations=False),
        )

    return {reader.image_key: tfds.decode.make_decoder()(decode)()}


def _read_indexed(reader: _Reader, split: str) -> SourceSplit:
    import tensorflow_datasets as tfds

    tf, builder, request = import_tensorflow(), reader.builder, reader.request
    keys = (reader.image_key, reader.label_key)
    try:
        info, features = builder.info.splits[split], builder.info.features
        written = tf.io.gfile.stat(f"{builder.data_dir}/dataset_info.json")
    except (*_NOT_PREPARED, tf.errors.NotFoundError) as error:
        raise reader.not_prepared("it is not prepared there") from error
    shards = [str(path) for path in info.filepaths]
    where = f"{builder.name} {split}"

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
        options=IndexOptions(request.index_dir, where, request.memory_limit_gb),
    )
    return source_split(indexed, request, where)
