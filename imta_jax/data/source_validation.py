"""What every source hands over, and the checks all of it passes before any use.

How they were read is in `sources/`; what is made of them in `dataset.py`.
"""

from typing import NamedTuple

import numpy as np

from imta_jax.data.channel_statistics import ChannelStatistics
from imta_jax.data.pipeline.encoded import EncodedImages

_WITHHELD = "; -1 often marks labels that are withheld: name another split (config.data.test_split)"


class SourceSplit(NamedTuple):
    """One split of a source, as found.

    Attributes:
      images: uint8 [N, H, W, C] or [N, H, W], C = 1 or 3; or N encoded ones.
      labels: integer [N], class of each image, from 0.
      skipped: images of the source that could not be decoded and are not among the N.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray
    skipped: int = 0


class SourceData(NamedTuple):
    """The splits of a source, as found: unchecked, unpadded, nothing held out yet.

    Attributes:
      name: of the dataset, as reports will call it.
      splits: "train" and, where the source has them, "validation" and "test"; images all arrays of
        the same H, W, C, or all encoded.
      class_names: one name per class; None where the source has none.
      statistics: published ones; None where they are to be computed.
    """

    name: str
    splits: dict[str, SourceSplit]
    class_names: tuple[str, ...] | None = None
    statistics: ChannelStatistics | None = None


def validate_source(raw: SourceData) -> SourceData:
    """The same data with array images [N, H, W, C], labels int32 [N] and classes named.

    Classes without names are called "0", "1", ... up to the largest training label.

    Raises:
      ValueError: what `validate_split` refuses, splits of images of different shapes, or labels
        without names that are larger than the number of images.
    """
    splits = {
        name: split._replace(images=with_channels(split.images))
        for name, split in raw.splits.items()
    }
    train = splits["train"]
    validate_split("train", train.images, train.labels)
    names = raw.class_names or _numbered_classes(train.labels)
    for name, split in splits.items():
        validate_split(name, split.images, split.labels, num_classes=len(names))
        _check_same_shape(name, split.images, train.images)
    whole = {name: s._replace(labels=s.labels.astype(np.int32)) for name, s in splits.items()}
    return raw._replace(splits=whole, class_names=names)


def _numbered_classes(labels: np.ndarray) -> tuple[str, ...]:
    """Names of classes that have none: "0" to the largest label.

    Raises:
      ValueError: more classes than images, so that labels count something else, as identifiers do.
    """
    last = int(labels.argmax())
    if labels[last] >= len(labels):
        raise ValueError(
            f"train label at index {last} is {labels[last]}, which would make more classes than"
            f" there are training images ({len(labels)}); expected the classes from 0 without gaps,"
            " or class_names with one name for each"
        )
    return tuple(str(k) for k in range(int(labels[last]) + 1))


def _check_same_shape(
    name: str, images: np.ndarray | EncodedImages, train: np.ndarray | EncodedImages
) -> None:
    if isinstance(images, np.ndarray) and images.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"{name} images are {images.shape[1:]} but training images {train.shape[1:]}"
            " (height, width, channels): both must be of one shape"
        )


def with_channels(images: np.ndarray | EncodedImages) -> np.ndarray | EncodedImages:
    """Gives grayscale images [N, H, W] their channel axis; all others are returned as they are."""
    if isinstance(images, EncodedImages) or images.ndim != 3:
        return images
    return images[..., np.newaxis]


def validate_split(
    name: str,
    images: np.ndarray | EncodedImages,
    labels: np.ndarray,
    num_classes: int | None = None,
) -> None:
    """Refuses a split that could not be trained or evaluated on.

    Args:
      name: which split; opens every message.
      images: to be uint8 [N, H, W, C] or [N, H, W], C = 1 or 3, or encoded; N > 0.
      labels: to be integers [N], none negative.
      num_classes: if given, labels must also be below it.

    Raises:
      ValueError: naming what was found, what was expected and the first offending index.
    """
    _check_images(name, images)
    _check_labels(name, labels)
    if len(images) != len(labels):
        raise ValueError(f"{name}: {len(images)} images but {len(labels)} labels; one label each")
    _check_label_range(name, labels, num_classes)


def _check_images(name: str, images: np.ndarray | EncodedImages) -> None:
    if isinstance(images, EncodedImages):
        if len(images) == 0:
            raise ValueError(f"{name} has no image")
        return
    if images.dtype != np.uint8:
        raise ValueError(
            f"{name} images are {images.dtype}, expected uint8 (0 to 255, not normalised): scale"
            " them back and cast"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"{name} images have shape {images.shape}, expected [N, H, W, C] with C = 1 or 3"
            " (channels last), or [N, H, W]"
        )
    if images.size == 0:
        raise ValueError(f"{name} images are empty: their shape is {images.shape}")


def _check_labels(name: str, labels: np.ndarray) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} labels are {labels.dtype}, expected integers: the class from 0")
    if labels.ndim != 1:
        raise ValueError(f"{name} labels have shape {labels.shape}, expected [N]: one class each")


def _check_label_range(name: str, labels: np.ndarray, num_classes: int | None) -> None:
    outside = labels < 0
    if num_classes is not None:
        outside |= labels >= num_classes
    if outside.any():
        first = int(np.argmax(outside))
        last_class = "K-1" if num_classes is None else num_classes - 1
        raise ValueError(
            f"{name} label at index {first} is {labels[first]}, expected 0 to {last_class};"
            f" {int(outside.sum())} labels are outside{_WITHHELD if labels[first] == -1 else ''}"
        )
