"""A dataset in memory: three disjoint splits of uint8 images, and the facts about them.

Reading is in `sources.py`, checks in `raw.py`, the choice of validation images in `carving.py`,
batches in `batches.py`. Images stay as they are here: normalising belongs to the step.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imta_jax.data.carving import stratified_holdout
from imta_jax.data.channel_statistics import channel_statistics
from imta_jax.data.raw import RawData, checked
from imta_jax.data.sources import load_source

_log = logging.getLogger(__name__)

# Three halvings, so that every scale of a network of up to four has whole, even steps.
SIZE_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N], from 0.
      source_index: int64 [N], position in the split of the source it was cut from: of a validation
        image, its position among the source's training images.
    """

    images: np.ndarray
    labels: np.ndarray
    source_index: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one dataset and what a network must know of it.

    Attributes:
      name: the source's name; of a file, its name without folder and ending.
      class_names: one per class, in the order of the labels.
      image_shape: (H, W, C) of every image, padding included.
      mean: per channel, of pixel values scaled to 0..1.
      std: as `mean`, never 0.
      statistics_source: where mean and std come from, for a report.
      splits: "train", "validation" and "test".
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics_source: str
    splits: dict[str, Split]

    @property
    def num_classes(self) -> int:
        """Number of classes K, those without an image included."""
        return len(self.class_names)


def load_dataset(config: Mapping[str, Any]) -> Dataset:
    """Loads a source, holds validation images out of training, and pads images where needed.

    Heights and widths become the next multiple of 8 (28 becomes 32, 32 stays) by zeros on both
    sides, the odd row or column after the image. Grayscale images keep their one channel.

    Args:
      config: the fields `source` ("fashion_mnist_small", a path ending in .npz, or a TFDS name),
        `data_dir` (TFDS's folder; "" is its default), `download` (may TFDS fetch what is missing),
        `validation_examples` (images held out, stratified by class) and `validation_seed`.

    Raises:
      ValueError: an unknown source, data that are not images with classes, or a number of
        validation examples that leaves a split without its classes.
      FileNotFoundError: the source is not there; the message says how to fetch it.
      ModuleNotFoundError: a TFDS name where TensorFlow is not installed.
    """
    raw = load_source(config["source"], data_dir=config["data_dir"], download=config["download"])
    return build_dataset(
        checked(raw),
        validation_examples=config["validation_examples"],
        validation_seed=config["validation_seed"],
    )


def build_dataset(raw: RawData, *, validation_examples: int, validation_seed: int) -> Dataset:
    """Makes a dataset of checked arrays (`raw.checked`); arguments and errors: `load_dataset`."""
    held_out = stratified_holdout(
        raw.train_labels, examples=validation_examples, seed=validation_seed
    )
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    images = raw.train_images[train]
    statistics = raw.statistics or channel_statistics(images)
    test = np.arange(len(raw.test_labels))
    splits = {
        "train": _split(images, raw.train_labels[train], train),
        "validation": _split(
            raw.train_images[validation], raw.train_labels[validation], validation
        ),
        "test": _split(raw.test_images, raw.test_labels, test),
    }
    _warn_of_unseen_classes(raw.name, raw.class_names, splits["train"].labels)
    shape = splits["train"].images.shape[1:]
    return Dataset(raw.name, raw.class_names, shape, *statistics, splits)


def _warn_of_unseen_classes(name: str, class_names: tuple[str, ...], labels: np.ndarray) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    unseen = [class_names[k] for k in np.flatnonzero(counts == 0)]
    if unseen:
        _log.warning("%s has no training image of class %s", name, ", ".join(unseen))


def pad_to_multiple(images: np.ndarray, multiple: int = SIZE_MULTIPLE) -> np.ndarray:
    """Zero-pads [N, H, W, C] so that `multiple` divides H and W, centring the images."""
    height, width = (-size % multiple for size in images.shape[1:3])
    if height == width == 0:
        return images
    before_after = [(size // 2, size - size // 2) for size in (height, width)]
    return np.pad(images, [(0, 0), *before_after, (0, 0)])


def _split(images: np.ndarray, labels: np.ndarray, source_index: np.ndarray) -> Split:
    return Split(pad_to_multiple(images), labels, source_index.astype(np.int64))
