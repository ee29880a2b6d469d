"""The return value of a source, and the checks of its data.

`sources/` reads the data. `dataset.py` turns validated data into a dataset.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from imta_jax.data.channel_statistics import ChannelStatistics
from imta_jax.data.findings import IgnoredNames, MisplacedImages, SplitFindings
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.errors import InputError

Images = np.ndarray | EncodedImages

_WITHHELD = (
    "; -1 often marks a test split without public labels, choose another one with"
    " config.data.test_split"
)


class SourceSplit(NamedTuple):
    """One split of a source, not yet validated.

    Attributes:
      images: uint8 [N, H, W, C] or [N, H, W] with C = 1 or 3, or N encoded images.
      labels: class of each image, from 0.
      skipped: number of images that were left out and are not among the N.
      digests: hashes of the images' files; None to hash the pixels of arrays.
      findings: what else was found in the split.
      files: the N files that an array was decoded from; None for other arrays.
    """

    images: Images
    labels: Int[np.ndarray, " N"]
    skipped: int = 0
    digests: Int64[np.ndarray, " N"] | None = None
    findings: SplitFindings = SplitFindings()
    files: EncodedImages | None = None


class SourceData(NamedTuple):
    """The splits of a source, not yet validated, padded or completed by held-out images.

    Attributes:
      name: name of the dataset.
      splits: "train" and, if the source has them, "validation" and "test". Images are all arrays of
        the same H, W, C, or all encoded.
      class_names: one name per class; None if the source has none.
      statistics: published channel statistics; None to compute them.
      misplaced: images that are not read because of where they are.
      ignored: names in class folders that are not read because of their suffix.
      decoder: library that decodes image files, see `decoder.py`; "" if there are none.
    """

    name: str
    splits: dict[str, SourceSplit]
    class_names: tuple[str, ...] | None = None
    statistics: ChannelStatistics | None = None
    misplaced: tuple[MisplacedImages, ...] = ()
    ignored: tuple[IgnoredNames, ...] = ()
    decoder: str = ""


def validate_source(source: SourceData) -> SourceData:
    """Validates all splits and brings them into one form.

    Args:
      source: what a source returned.

    Returns:
      The same data with array images [N, H, W, C], labels int32 [N] and class names. Classes
      without names are called "0", "1", ... up to the largest training label.

    Raises:
      ValueError: a split is invalid (see `validate_split`), image shapes differ between splits,
        labels without class names are as large as the number of images, or a class name is not
        valid Unicode.
    """
    splits = {
        name: split._replace(images=_with_channel_axis(split.images))
        for name, split in source.splits.items()
    }
    train = splits["train"]
    validate_split("train", train.images, train.labels)
    class_names = source.class_names or numbered_classes(train.labels)
    _check_class_names(class_names)
    for name, split in splits.items():
        validate_split(name, split.images, split.labels, num_classes=len(class_names))
        _check_same_shape(name, split.images, train.images)
    splits = {
        name: split._replace(labels=split.labels.astype(np.int32)) for name, split in splits.items()
    }
    return source._replace(splits=splits, class_names=class_names)


def validate_split(
    name: str,
    images: Images,
    labels: np.ndarray,
    num_classes: int | None = None,
) -> None:
    """Rejects a split that cannot be trained or evaluated on.

    Args:
      name: name of the split, for messages.
      images: expected to be uint8 [N, H, W, C] or [N, H, W] with C = 1 or 3, or encoded; N > 0.
      labels: expected to be integers [N], not negative.
      num_classes: if given, labels must be less.

    Raises:
      ValueError: the message names what was found, what was expected and the first invalid index.
    """
    _check_images(name, images)
    _check_labels(name, labels)
    if len(images) != len(labels):
        raise InputError(
            f"{name} has {len(images)} images but {len(labels)} labels; expected one label per"
            " image"
        )
    _check_label_range(name, labels, num_classes)


def _with_channel_axis(images: Images) -> Images:
    """Adds the channel axis to grayscale arrays [N, H, W]."""
    if isinstance(images, EncodedImages) or images.ndim != 3:
        return images
    return images[..., np.newaxis]


def numbered_classes(labels: np.ndarray) -> tuple[str, ...]:
    """Names "0", "1", ... for classes without names, up to the largest label."""
    largest = int(labels.argmax())
    if labels[largest] >= len(labels):
        raise InputError(
            f"train label at index {largest} is {labels[largest]}, expected less than"
            f" {len(labels)}, the number of training images; number the classes from 0 without"
            " gaps, or give class_names with one name per class"
        )
    return tuple(str(k) for k in range(int(labels[largest]) + 1))


def _check_class_names(names: tuple[str, ...]) -> None:
    """Rejects names with surrogates, which no file and no terminal can hold."""
    for k, name in enumerate(names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(
                f"the name of class {k} is {name!r}, expected valid Unicode, without surrogates"
                " such as os.fsdecode makes of bytes that are not UTF-8; rename this class"
            )


def _check_same_shape(name: str, images: Images, train: Images) -> None:
    if isinstance(images, EncodedImages) or isinstance(train, EncodedImages):
        return
    if images.shape[1:] != train.shape[1:]:
        raise InputError(
            f"{name} images have shape {images.shape[1:]} (height, width, channels), expected"
            f" {train.shape[1:]} like the training images"
        )


def _check_images(name: str, images: Images) -> None:
    if isinstance(images, EncodedImages):
        if len(images) == 0:
            raise InputError(f"{name} has 0 images, expected at least 1")
        return
    if images.dtype != np.uint8:
        raise InputError(
            f"{name} images have dtype {images.dtype}, expected uint8 (0 to 255, not normalized);"
            " rescale them to 0..255 and cast them"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise InputError(
            f"{name} images have shape {images.shape}, expected [N, H, W, C] with C = 1 or 3"
            " (channels last), or [N, H, W]"
        )
    if images.size == 0:
        raise InputError(f"{name} images have shape {images.shape}, expected at least one pixel")


def _check_labels(name: str, labels: np.ndarray) -> None:
    if labels.dtype.kind not in "iu":  # durations are also subtypes of np.integer
        raise InputError(
            f"{name} labels have dtype {labels.dtype}, expected integers (classes from 0); convert"
            " them, for example by numpy.unique(labels, return_inverse=True)"
        )
    if labels.ndim != 1:
        raise InputError(
            f"{name} labels have shape {labels.shape}, expected [N] (one class per image); of"
            " one-hot labels, take argmax(axis=1)"
        )


def _check_label_range(name: str, labels: np.ndarray, num_classes: int | None) -> None:
    outside = labels < 0
    if num_classes is not None:
        outside |= labels >= num_classes
    if outside.any():
        first = int(np.argmax(outside))
        last_class = "K-1" if num_classes is None else num_classes - 1
        hint = _WITHHELD if labels[first] == -1 else ""
        if num_classes is not None and labels[first] >= num_classes:
            hint = f"; there are {num_classes} classes: correct class_names, one name per class, or"
            hint += " the labels"
        raise InputError(
            f"{name} label at index {first} is {labels[first]}, expected 0 to {last_class};"
            f" {int(outside.sum())} labels are outside{hint}"
        )
