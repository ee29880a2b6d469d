"""Datasets of TensorFlow Datasets, decoded into arrays.

Nothing here is imported from TensorFlow until a dataset is asked for.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.data.channel_statistics import PUBLISHED_STATISTICS
from imta_jax.data.raw import RawData
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import unknown_name

_log = logging.getLogger(__name__)

# Named in the error for an unknown dataset; every other TFDS name is accepted as well.
USUAL_NAMES = ("cifar10", "cifar100", "fashion_mnist")
_READ_EXAMPLES = 1024  # read at a time


def read(source: str, *, data_dir: str, download: bool, also_valid: Iterable[str]) -> RawData:
    """Reads the splits "train" and "test" of a TFDS dataset.

    Args:
      source: a TFDS name, with configuration and version where wanted: "name/config:1.0.0".
      data_dir: folder of the prepared datasets; "" is TFDS's default.
      download: whether TFDS may fetch and prepare what is missing.
      also_valid: names of other sources, for the error about an unknown one.

    Raises:
      ValueError: unknown name, no images with class labels, or no split of that name.
      FileNotFoundError: not prepared, and not to be or not able to be downloaded.
      ModuleNotFoundError: TensorFlow or TFDS is not installed.
    """
    tfds = _import_tfds(source, also_valid)
    _check_name(tfds, source, also_valid)
    builder = tfds.builder(source, data_dir=data_dir or None)
    image_key, label_key = _feature_keys(tfds, builder)
    if download:
        _prepare(builder, source, data_dir)
    train = _read_split(builder, "train", source, data_dir, (image_key, label_key))
    test = _read_split(builder, "test", source, data_dir, (image_key, label_key))
    class_names = tuple(builder.info.features[label_key].names)
    statistics = PUBLISHED_STATISTICS.get(builder.name)
    return RawData(source, *train, *test, class_names, statistics)


def _import_tfds(source: str, also_valid: Iterable[str]) -> Any:
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ModuleNotFoundError(
            f"dataset {source!r} would be read by TensorFlow Datasets, which cannot be imported"
            f" ({error}): pip install tensorflow-cpu tensorflow-datasets, or choose a source that"
            f" needs neither: {', '.join(also_valid)}, or a path ending in .npz"
        ) from error
    return tfds


def _check_name(tfds: Any, source: str, also_valid: Iterable[str]) -> None:
    name = re.split("[/:]", source, maxsplit=1)[0]  # without configuration and version
    if name not in tfds.list_builders(with_community_datasets=False):
        error = unknown_name("dataset", source, [*also_valid, *USUAL_NAMES])
        raise ValueError(f"{error}; or another name TFDS knows, or a path ending in .npz")


def _feature_keys(tfds: Any, builder: Any) -> tuple[str, str]:
    features, keys = builder.info.features, builder.info.supervised_keys
    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    if [type(features[key]) for key in keys or ()] != kinds:
        raise ValueError(
            f"TFDS dataset {builder.name} is not one of images with one class label each; its"
            f" features are: {', '.join(features)}"
        )
    shape = features[keys[0]].shape
    if len(shape) != 3 or None in shape:
        raise ValueError(
            f"TFDS dataset {builder.name}: {keys[0]} has shape {shape}, expected one known height,"
            " width and number of channels for all images"
        )
    return keys


def _prepare(builder: Any, source: str, data_dir: str) -> None:
    if not Path(builder.data_dir).exists():
        _log.info(
            "dataset %s is not in %s yet: fetching it (TFDS tries for some minutes before it "
            "gives up without a network)",
            source,
            builder.data_dir,
        )
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise _not_there(builder, source, data_dir, f"fetching it failed ({error})") from error


def _read_split(
    builder: Any, split: str, source: str, data_dir: str, keys: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    found = list(builder.info.splits)
    if found and split not in found:
        raise ValueError(
            f"TFDS dataset {source} has no split {split!r}, only: {', '.join(found)}; save what is"
            " to be used as an .npz and give its path"
        )
    try:
        dataset = builder.as_dataset(split=split)
    except (AssertionError, KeyError) as error:  # how TFDS says that nothing is prepared
        raise _not_there(builder, source, data_dir, "it is not prepared there") from error
    pairs = dataset.map(lambda example: tuple(example[key] for key in keys))
    chunks = list(pairs.batch(_READ_EXAMPLES).as_numpy_iterator())
    if not chunks:
        raise ValueError(f"TFDS dataset {source}: its split {split!r} is empty")
    images, labels = zip(*chunks, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _not_there(builder: Any, source: str, data_dir: str, reason: str) -> FileNotFoundError:
    # Not the `tfds build` command: it cannot start unless Apache Beam is installed too.
    folder = f", data_dir={str(Path(data_dir).expanduser().absolute())!r}" if data_dir else ""
    code = f"import tensorflow_datasets as tfds; tfds.builder({source!r}{folder})"
    return FileNotFoundError(
        f"dataset {source!r} is not in {builder.data_dir}: {reason}. With a network, fetch it by\n"
        f'  python -c "{code}.download_and_prepare()"\nor set the field download to True'
    )
