"""A dataset: three disjoint splits of images, and the facts about them.

Reading is in `sources/`, checks in `raw.py`, the choice of held-out images in `carving.py`, batches
in `batches.py`. Images stay as they are here, arrays or encoded: normalising belongs to the step.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imta_jax.data.channel_statistics import ChannelStatistics, channel_statistics
from imta_jax.data.holdout import stratified_holdout
from imta_jax.data.pipeline.batch_indices import eval_indices
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing, preprocessing_from
from imta_jax.data.pipeline.tf_pipeline import HostPipeline, resized_batches
from imta_jax.data.source_validation import SourceData, SourceSplit, validate_source
from imta_jax.data.sources import SourceRequest, load_source

_log = logging.getLogger(__name__)

# Three halvings, so that every scale of a network of up to four has whole, even steps.
SIZE_MULTIPLE = 8
# Of which the channel statistics of photographs are taken.
_SAMPLE_IMAGES = 1024
_NAMED_AT_MOST = 10


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
      images: uint8 [N, H, W, C], or N encoded ones.
      labels: int32 [N], from 0.
      source_index: int64 [N], position in the split of the source it was cut from: of an image held
        out, its position among the source's training images.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray
    source_index: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each image, int32 [N, 2]."""
        if isinstance(self.images, EncodedImages):
            return self.images.sizes
        return np.broadcast_to(np.int32(self.images.shape[1:3]), (len(self), 2))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one dataset and what a network must know of it.

    Attributes:
      name: the source's name; of a file or folder, its name without what surrounds it.
      class_names: one per class, in the order of the labels.
      image_shape: (H, W, C) of every image as the network sees it.
      mean: per channel, of pixel values scaled to 0..1.
      std: as `mean`, never 0.
      statistics_source: where mean and std come from, for a report.
      splits: "train", "validation" and "test".
      preprocessing: what a batch shows of each image.
      skipped: by part ("train", ...), how many images of its split of the source did not decode
        and are left out; those of held-out images count for "train".
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics_source: str
    splits: dict[str, Split]
    preprocessing: Preprocessing
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes K, those without an image included."""
        return len(self.class_names)


def load_dataset(config: Mapping[str, Any]) -> Dataset:
    """Loads or indexes a source, and holds images out of training where it has no split for them.

    Arrays of small images are padded by zeros to the next multiple of 8 in height and width (28
    becomes 32, 32 stays), the odd row or column after the image; grayscale ones keep their one
    channel. Photographs (`preprocessing` "random_area_crop") stay encoded, and become RGB.

    Args:
      config: `config.data` (configs/common.py).

    Raises:
      ValueError: an unknown source, data that are not images with classes, or a number of
        held-out examples that leaves a split without its classes.
      FileNotFoundError: the source is not there; the message says how to fetch it.
      PermissionError: it may not be read.
      OSError: it cannot be read, or the disk is full.
      ModuleNotFoundError: TensorFlow is needed and not installed.
    """
    preprocessing = preprocessing_from(config)
    small = isinstance(preprocessing, PaddedCrop)
    request = SourceRequest.from_config(config, encoded=not small)
    return build_dataset(
        _read(request),
        preprocessing,
        validation_examples=config["validation_examples"],
        validation_seed=config["validation_seed"],
        test_examples=config.get("test_examples", 0),
    )


def build_dataset(
    raw: SourceData,
    preprocessing: Preprocessing,
    *,
    validation_examples: int,
    validation_seed: int,
    test_examples: int = 0,
) -> Dataset:
    """Makes a dataset of checked data (`validate_source`); arguments and errors: `load_dataset`."""
    parts = {name: _whole(split) for name, split in raw.splits.items()}
    # Another seed: whoever judges on validation images must not have chosen the test's.
    held_out = {"test": (test_examples, validation_seed + 1)}
    held_out["validation"] = (validation_examples, validation_seed)
    for name, (examples, seed) in held_out.items():
        if name in parts:
            _log.info("%s: the source's own, %d images", name, len(parts[name]))
        else:
            parts["train"], parts[name] = _hold_out(parts["train"], examples, seed, name)
            _log.info("%s: %d images held out of the training images", name, len(parts[name]))
    for name, kind in {"train": "training", "validation": "validation", "test": "test"}.items():
        _warn_of_unseen_classes(raw.name, raw.class_names, kind, parts[name].labels)
    statistics = raw.statistics or _statistics(parts["train"], preprocessing)
    if isinstance(preprocessing, PaddedCrop):
        parts = {name: _padded(split) for name, split in parts.items()}
        shape = parts["train"].images.shape[1:]
        preprocessing.check_fits(shape)
    else:
        shape = (preprocessing.size, preprocessing.size, len(statistics.mean))
    skipped = {name: split.skipped for name, split in raw.splits.items()}
    splits = {name: parts[name] for name in ("train", "validation", "test")}
    return Dataset(raw.name, raw.class_names, shape, *statistics, splits, preprocessing, skipped)


def _read(request: SourceRequest) -> SourceData:
    raw = load_source(request)
    try:
        return validate_source(raw)
    except ValueError as error:
        raise ValueError(f"config.data.source={request.source}: {error}") from error


def _whole(split: SourceSplit) -> Split:
    return Split(split.images, split.labels, np.arange(len(split.labels)))


def _hold_out(split: Split, examples: int, seed: int, name: str) -> tuple[Split, Split]:
    """The rest, and `examples` of the images, stratified."""
    chosen = stratified_holdout(split.labels, examples=examples, seed=seed, split=name)
    return _picked(split, ~chosen), _picked(split, chosen)


def _picked(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.images[chosen], split.labels[chosen], split.source_index[chosen])


def _statistics(train: Split, preprocessing: Preprocessing) -> ChannelStatistics:
    """Of the training images; of photographs, those of a sample as it would be judged."""
    if isinstance(preprocessing, PaddedCrop):
        return channel_statistics(train.images)
    sample = np.unique(np.linspace(0, len(train) - 1, _SAMPLE_IMAGES).astype(np.int64))
    some = _picked(train, sample)
    rows = eval_indices(preprocessing.eval_windows(some.sizes), batch_size=1)
    batches = resized_batches(
        some.images, rows, 1, HostPipeline(), size=preprocessing.size, exact=True
    )
    pixels = np.concatenate([images for images, _ in batches])
    statistics = channel_statistics(pixels)
    return statistics._replace(
        source=f"computed from {len(pixels)} training images, spread evenly, as they are judged"
    )


def _warn_of_unseen_classes(
    name: str, class_names: tuple[str, ...], kind: str, labels: np.ndarray
) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    unseen = [class_names[k] for k in np.flatnonzero(counts == 0)]
    if unseen:
        more = f" and {len(unseen) - _NAMED_AT_MOST} more" if len(unseen) > _NAMED_AT_MOST else ""
        named = ", ".join(unseen[:_NAMED_AT_MOST])
        unnamed = kind == "training" and unseen[0] == "0"
        first = ": do the labels start at 1? They are counted from 0" if unnamed else ""
        _log.warning("%s has no %s image of class %s%s%s", name, kind, named, more, first)


def pad_to_multiple(images: np.ndarray, multiple: int = SIZE_MULTIPLE) -> np.ndarray:
    """Zero-pads [N, H, W, C] so that `multiple` divides H and W, centring the images."""
    height, width = (-size % multiple for size in images.shape[1:3])
    if height == width == 0:
        return images
    before_after = [(size // 2, size - size // 2) for size in (height, width)]
    return np.pad(images, [(0, 0), *before_after, (0, 0)])


def _padded(split: Split) -> Split:
    return Split(pad_to_multiple(split.images), split.labels, split.source_index)
