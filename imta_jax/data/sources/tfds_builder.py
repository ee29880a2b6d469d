"""From a prepared TFDS dataset to raw data: arrays, or an index of its records."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from imta_jax.data.channel_statistics import PUBLISHED_STATISTICS
from imta_jax.data.pipeline.indexing import index_records
from imta_jax.data.source_validation import SourceData, SourceSplit
from imta_jax.data.sources.encoded_split import source_split
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.data.sources.storage import changed
from imta_jax.data.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

_READ_EXAMPLES = 1024  # read at a time
# How TFDS says that a split is not prepared: it asserts, or finds no such key, or no file.
_NOT_PREPARED = (AssertionError, KeyError, FileNotFoundError)


def read_builder(
    builder: Any, request: SourceRequest, not_there: Callable[[str], Exception]
) -> SourceData:
    """Reads the splits of a dataset that TFDS prepared.

    Args:
      builder: of TFDS.
      request: which splits, and whether they stay encoded.
      not_there: makes the error for data that are not prepared, from the reason.

    Raises:
      ValueError: no images with class labels, no such split, images of many sizes that are to be
        arrays, or records that cannot be read at random.
    """
    keys = feature_keys(builder)
    splits = list(builder.info.splits) or _wished(request)
    parts = choose_splits(request, splits, f"TFDS dataset {builder.name}")
    _check_format(builder)
    if not request.encoded:
        _check_one_shape(builder, keys[0])
    read = _encoded if request.encoded else _arrays
    found = {part: read(builder, split, keys, request, not_there) for part, split in parts.items()}
    names = tuple(builder.info.features[keys[1]].names)
    # The published statistics are those of the usual splits, whatever is read of them.
    return SourceData(builder.name, found, names, PUBLISHED_STATISTICS.get(builder.name))


def _wished(request: SourceRequest) -> list[str]:
    """Splits for a dataset of which TFDS knows none, not prepared: the attempt to read tells."""
    named = {request.train_split, request.validation_split, request.test_split}
    return ["train", "test", *sorted(named - {"train", "test", "auto", "carve"})]


def feature_keys(builder: Any) -> tuple[str, str]:
    """The names of a dataset's image and label features.

    Raises:
      ValueError: no images with one class label each.
    """
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None:  # of a dataset that is read without the code that prepared it
        kinds = {kind: [k for k in features if type(features[k]) is kind] for kind in _kinds(tfds)}
        keys = tuple(found[0] for found in kinds.values() if len(found) == 1)
    if [type(features[key]) for key in keys] != _kinds(tfds):
        raise ValueError(
            f"TFDS dataset {builder.name} is not one of images with one class label each; its"
            f" features are: {', '.join(features)}"
        )
    return keys


def _kinds(tfds: Any) -> list[type]:
    return [tfds.features.Image, tfds.features.ClassLabel]


def _check_format(builder: Any) -> None:
    found = builder.info.file_format.value
    if found != "tfrecord":
        raise ValueError(
            f"TFDS dataset {builder.name} is prepared as {found}; expected tfrecord: prepare it"
            " again, elsewhere, with file_format='tfrecord'"
        )


def _check_one_shape(builder: Any, image_key: str) -> None:
    shape = builder.info.features[image_key].shape
    if len(shape) != 3 or None in shape:
        raise ValueError(
            f"TFDS dataset {builder.name}: {image_key} has shape {shape}, expected one known"
            " height, width and number of channels for all images; images of many sizes need"
            " config.data.preprocessing=random_area_crop, as in configs/imagenet.py"
        )


def _arrays(
    builder: Any,
    split: str,
    keys: tuple[str, str],
    request: SourceRequest,
    not_there: Callable[[str], Exception],
) -> SourceSplit:
    try:
        dataset = builder.as_dataset(split=split, decoders=_decoders(builder, keys[0]))
    except _NOT_PREPARED as error:
        raise not_there("it is not prepared there") from error
    pairs = dataset.map(lambda example: tuple(example[key] for key in keys))
    chunks = list(pairs.batch(_READ_EXAMPLES).as_numpy_iterator())
    if not chunks:
        raise ValueError(f"TFDS dataset {builder.name}: its split {split!r} is empty")
    images, labels = zip(*chunks, strict=True)
    return SourceSplit(np.concatenate(images), np.concatenate(labels))


def _decoders(builder: Any, image_key: str) -> dict[str, Any] | None:
    """For JPEGs, TensorFlow's exact decoding: its default, which TFDS takes, is levels away."""
    import tensorflow_datasets as tfds

    if builder.info.features[image_key].encoding_format != "jpeg":
        return None

    def decode(contents: "tf.Tensor", feature: Any) -> "tf.Tensor":
        return import_tensorflow().io.decode_jpeg(
            contents, channels=feature.shape[-1], dct_method="INTEGER_ACCURATE"
        )

    return {image_key: tfds.decode.make_decoder()(decode)()}


def _encoded(
    builder: Any,
    split: str,
    keys: tuple[str, str],
    request: SourceRequest,
    not_there: Callable[[str], Exception],
) -> SourceSplit:
    import tensorflow_datasets as tfds

    try:
        info, features = builder.info.splits[split], builder.info.features
        written = import_tensorflow().io.gfile.stat(f"{builder.data_dir}/dataset_info.json")
    except (*_NOT_PREPARED, import_tensorflow().errors.NotFoundError) as error:
        raise not_there("it is not prepared there") from error
    shards = [str(path) for path in info.filepaths]
    where = f"{builder.name} {split}"

    def parse(record: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        example = features.deserialize_example(
            record, decoders={keys[0]: tfds.decode.SkipDecoding()}
        )
        return example[keys[0]], example[keys[1]]

    indexed = index_records(
        shards,
        parse,
        feature=keys[0],
        examples=info.num_examples,
        key=("records", keys, written.mtime_nsec, shards, [changed(shard) for shard in shards]),
        index_dir=request.index_dir,
        where=where,
    )
    return source_split(indexed, request, where)
