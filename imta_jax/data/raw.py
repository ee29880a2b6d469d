"""What every source hands over, and the checks all of it passes before any use.

How the arrays were read is in `sources.py`; what is made of them in `dataset.py`.
"""

from typing import NamedTuple

import numpy as np

from imta_jax.data.channel_statistics import ChannelStatistics


class RawData(NamedTuple):
    """The arrays of a source, as found: unchecked, unpadded, validation not yet held out.

    Attributes:
      name: of the dataset, as reports will call it.
      train_images: uint8 [N, H, W, C] or [N, H, W], C = 1 or 3.
      train_labels: integer [N], class of each image, from 0.
      test_images: as `train_images`, of the same H, W, C.
      test_labels: as `train_labels`.
      class_names: one name per class; None where the source has none.
      statistics: published ones; None where they are to be computed.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...] | None = None
    statistics: ChannelStatistics | None = None


def checked(raw: RawData) -> RawData:
    """The same data with images [N, H, W, C], labels int32 [N] and classes named.

    Classes without names are called "0", "1", ... up to the largest training label.

    Raises:
      ValueError: what `validate_split` refuses, or test images of another shape than training's.
    """
    train_images, test_images = with_channels(raw.train_images), with_channels(raw.test_images)
    validate_split("train", train_images, raw.train_labels)
    names = raw.class_names or tuple(str(k) for k in range(int(raw.train_labels.max()) + 1))
    validate_split("train", train_images, raw.train_labels, num_classes=len(names))
    validate_split("test", test_images, raw.test_labels, num_classes=len(names))
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"test images are {test_images.shape[1:]} but training images {train_images.shape[1:]}"
            " (height, width, channels): both must be of one shape"
        )
    return raw._replace(
        train_images=train_images,
        train_labels=raw.train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=raw.test_labels.astype(np.int32),
        class_names=names,
    )


def with_channels(images: np.ndarray) -> np.ndarray:
    """Gives grayscale images [N, H, W] their channel axis; all others are returned as they are."""
    return images[..., np.newaxis] if images.ndim == 3 else images


def validate_split(
    name: str, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None
) -> None:
    """Refuses a split that could not be trained or evaluated on.

    Args:
      name: which split; opens every message.
      images: to be uint8 [N, H, W, C] or [N, H, W], C = 1 or 3, N > 0.
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


def _check_images(name: str, images: np.ndarray) -> None:
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
            f" {int(outside.sum())} labels are outside"
        )
