"""A dataset: disjoint training, validation and test splits, and their description.

`sources/` reads images, `source_validation.py` checks them, `holdout.py` chooses the held-out
images, and `pipeline/` makes batches. Images are stored as uint8 arrays or encoded files; the
training step normalizes them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from imta_jax.config import DataConfig
from imta_jax.data.channel_statistics import ChannelStatistics, channel_statistics
from imta_jax.data.findings import (
    DataFindings,
    find_duplicates,
    pixel_digests,
    similar_classes,
    warn_of_findings,
)
from imta_jax.data.holdout import stratified_holdout
from imta_jax.data.info import DatasetInfo
from imta_jax.data.padding import pad_to_multiple, padded_size
from imta_jax.data.pipeline.batch_indices import eval_indices
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
from imta_jax.data.pipeline.host_pipeline import HostPipeline, resized_batches
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing, preprocessing_from
from imta_jax.data.source_validation import SourceData, SourceSplit, validate_source
from imta_jax.data.sources import SourceRequest, load_source, tfds_description
from imta_jax.data.split import Split
from imta_jax.errors import InputError

_log = logging.getLogger(__name__)

_STATISTICS_SAMPLE = 1024  # encoded images that are decoded for the channel statistics
_MAX_NAMED_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a dataset and its description.

    Attributes:
      name: name of the dataset; of a file or folder, its last path component without extension.
      class_names: one name per class, in label order.
      image_shape: (H, W, C) of the network's input.
      mean: per channel, of pixel values scaled to [0, 1].
      std: as `mean`, never 0.
      statistics_source: origin of mean and std, for reports.
      splits: "train", "validation" and "test".
      preprocessing: crop and augmentation of each image.
      skipped: number of images of each split that are left out. Held-out images count as "train".
      held_out: names of the splits held out of the source's training images. The other splits are
        the source's own.
      findings: what was left out and why, duplicates, and unusual names.
      decoder: library that decodes the image files, "tf_data" or "pillow"; "" if there are none.
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
    held_out: tuple[str, ...] = ()
    findings: DataFindings = field(default_factory=DataFindings)
    decoder: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes K, including classes without images."""
        return len(self.class_names)

    @property
    def info(self) -> DatasetInfo:
        """The description of the dataset without its images."""
        return DatasetInfo(self.name, self.num_classes, self.image_shape)

    @property
    def evaluation_transform(self) -> EvaluationTransform:
        """How evaluation makes the network's input from an image."""
        return self.preprocessing.evaluation_transform(self.image_shape, self.mean, self.std)


def load_dataset(
    config: DataConfig | ConfigDict | Mapping[str, Any], *, decoder: str = ""
) -> Dataset:
    """Loads or indexes a source and holds out images for the splits that it lacks.

    Arrays of small images are zero-padded to the next multiple of 8 in height and width (28 becomes
    32). Grayscale arrays keep one channel. With `preprocessing="random_area_crop"`, images stay
    encoded and are decoded to RGB.

    Args:
      config: `config.data`; a mapping is parsed by `DataConfig.from_mapping`.
      decoder: `Dataset.decoder` of an earlier part of a run, which pipeline="auto" uses again.

    Raises:
      ValueError: an invalid field, an unknown source, data that are not images with class labels,
        or a number of held-out images that does not fit.
      FileNotFoundError: the source does not exist. The message says how to fetch it.
      PermissionError: the source may not be read.
      OSError: the source cannot be read, or the disk is full.
      ModuleNotFoundError: TensorFlow is required and not installed.
    """
    config = DataConfig.from_mapping(config)
    preprocessing = preprocessing_from(config)
    encoded = not isinstance(preprocessing, PaddedCrop)
    request = SourceRequest.from_config(config, encoded=encoded)
    if decoder and config.pipeline == "auto":
        request = replace(request, pipeline=decoder)
    source = _read(request)
    return build_dataset(
        source,
        preprocessing,
        validation_examples=config.validation_examples,
        validation_seed=config.validation_seed,
        test_examples=config.test_examples,
    )


def dataset_info(config: DataConfig | ConfigDict | Mapping[str, Any]) -> DatasetInfo:
    """Describes the dataset that `config.data` names, without its images if possible.

    A TFDS dataset is described without downloading or reading it. Other sources are loaded.

    Args:
      config: `config.data`; a mapping is parsed by `DataConfig.from_mapping`.

    Raises:
      UserError: see `load_dataset`.
    """
    config = DataConfig.from_mapping(config)
    preprocessing = preprocessing_from(config)
    one_shape = isinstance(preprocessing, PaddedCrop)
    described = tfds_description(config.source, one_shape=one_shape)
    if described is None:
        return load_dataset(config).info
    name, num_classes, shape = described
    if not isinstance(preprocessing, PaddedCrop):
        return DatasetInfo(name, num_classes, (preprocessing.size, preprocessing.size, 3))
    height, width, channels = shape
    return DatasetInfo(name, num_classes, (padded_size(height), padded_size(width), channels))


def build_dataset(
    source: SourceData,
    preprocessing: Preprocessing,
    *,
    validation_examples: int,
    validation_seed: int,
    test_examples: int = 0,
) -> Dataset:
    """Makes a dataset from validated source data.

    Args:
      source: return value of `validate_source`.
      preprocessing: crop and augmentation of each image.
      validation_examples: images to hold out if the source has no validation split.
      validation_seed: seed of the choice of held-out images.
      test_examples: images to hold out if the source has no test split.

    Raises:
      ValueError: see `load_dataset`.
    """
    splits = _with_held_out_splits(
        {name: _as_split(split) for name, split in source.splits.items()},
        # The test images must not be chosen by the seed that chooses the validation images.
        {
            "test": (test_examples, validation_seed + 1),
            "validation": (validation_examples, validation_seed),
        },
    )
    class_names = source.class_names
    assert class_names is not None, "set by validate_source"
    for name, split in splits.items():
        _warn_of_unseen_classes(source.name, class_names, name, split.labels)
    findings = _findings(source, splits)
    statistics = source.statistics or _statistics(splits["train"], preprocessing)
    preprocessing, splits, shape = _fitted(preprocessing, splits, len(statistics.mean))
    skipped = {name: split.skipped for name, split in source.splits.items()}
    held_out = tuple(name for name in ("validation", "test") if name not in source.splits)
    return Dataset(
        source.name,
        class_names,
        shape,
        *statistics,
        splits,
        preprocessing,
        skipped,
        held_out,
        findings,
        source.decoder,
    )


def _fitted(
    preprocessing: Preprocessing, splits: dict[str, Split], channels: int
) -> tuple[Preprocessing, dict[str, Split], tuple[int, int, int]]:
    """Preprocessing for the size of the images, splits padded for it, and the image shape."""
    if not isinstance(preprocessing, PaddedCrop):
        return preprocessing, splits, (preprocessing.size, preprocessing.size, channels)
    height, width = splits["train"].array.shape[1:3]
    preprocessing = replace(preprocessing, source_size=(height, width))
    splits = {name: _padded(split) for name, split in splits.items()}
    shape = splits["train"].array.shape[1:]
    preprocessing.check_fits(shape)
    return preprocessing, splits, shape


def _findings(source: SourceData, splits: Mapping[str, Split]) -> DataFindings:
    """Findings in the source, and duplicates in the splits that are made of it."""
    by_source = {name: _digests(split) for name, split in source.splits.items()}
    digests = {
        name: by_source.get(name, by_source["train"])[split.source_index]
        for name, split in splits.items()
    }

    def name_of(split: str, position: int) -> str:
        images = splits[split].images
        if isinstance(images, EncodedImages):
            return images.name(position)
        origin = split if split in source.splits else "train"
        index, files = splits[split].source_index[position], source.splits[origin].files
        return f"{origin} image {index}" if files is None else files.name(index)

    findings = DataFindings(
        {name: split.findings for name, split in source.splits.items()},
        find_duplicates(digests, {name: split.labels for name, split in splits.items()}, name_of),
        similar_classes(source.class_names or ()),
        source.misplaced,
        source.ignored,
    )
    warn_of_findings(source.name, findings)
    return findings


def _digests(split: SourceSplit) -> Int64[np.ndarray, " N"]:
    if split.digests is not None:
        return split.digests
    assert isinstance(split.images, np.ndarray), "encoded images have digests"
    return pixel_digests(split.images)


def _read(request: SourceRequest) -> SourceData:
    source = load_source(request)
    try:
        return validate_source(source)
    except ValueError as error:
        raise InputError(f"config.data.source={request.source}: {error}") from error


def _as_split(split: SourceSplit) -> Split:
    return Split(split.images, split.labels, np.arange(len(split.labels)))


def _with_held_out_splits(
    splits: dict[str, Split], held_out: Mapping[str, tuple[int, int]]
) -> dict[str, Split]:
    """Adds each split that is missing by holding out training images.

    Args:
      splits: splits of the source by name.
      held_out: (number of examples, seed) by the name of the split.

    Returns:
      "train", "validation" and "test", in this order.
    """
    by_role = dict(splits)
    for name, (examples, seed) in held_out.items():
        if name in by_role:
            _log.info("%s: split of the source, %d images", name, len(by_role[name]))
            continue
        train = by_role["train"]
        chosen = stratified_holdout(train.labels, examples=examples, seed=seed, split=name)
        by_role["train"], by_role[name] = train.select(~chosen), train.select(chosen)
        _log.info("%s: %d held-out training images", name, len(by_role[name]))
    return {name: by_role[name] for name in ("train", "validation", "test")}


def _statistics(train: Split, preprocessing: Preprocessing) -> ChannelStatistics:
    """Statistics of the training images; of encoded images, a sample with evaluation crops."""
    if isinstance(preprocessing, PaddedCrop):
        return channel_statistics(train.array)
    sample = np.unique(np.linspace(0, len(train) - 1, _STATISTICS_SAMPLE).astype(np.int64))
    sampled = train.select(sample)
    indices = eval_indices(preprocessing.eval_windows(sampled.sizes), batch_size=1)
    batches = resized_batches(
        sampled.images, indices, 1, HostPipeline(), size=preprocessing.size, exact=True
    )
    pixels = np.concatenate([images for images, _ in batches])
    return channel_statistics(pixels)._replace(
        source=f"computed from {len(pixels)} evenly spaced training images with evaluation crops"
    )


def _warn_of_unseen_classes(
    dataset: str, class_names: tuple[str, ...], split: str, labels: np.ndarray
) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    unseen = [class_names[k] for k in np.flatnonzero(counts == 0)]
    if not unseen:
        return
    named = ", ".join(unseen[:_MAX_NAMED_CLASSES])
    more = len(unseen) - _MAX_NAMED_CLASSES
    labels_from_one = split == "train" and unseen[0] == "0"
    _log.warning(
        "%s: split %r has no image of class %s%s%s",
        dataset,
        split,
        named,
        f" and {more} more" if more > 0 else "",
        "; labels must start at 0, check whether they start at 1" if labels_from_one else "",
    )


def _padded(split: Split) -> Split:
    return Split(pad_to_multiple(split.array), split.labels, split.source_index)
