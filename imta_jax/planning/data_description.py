"""The description of a run's data that its programs depend on, without the images."""

import dataclasses
from typing import Any

from imta_jax.config import HOLD_OUT, DataConfig
from imta_jax.data import Dataset, PaddedCrop, load_dataset, preprocessing_from
from imta_jax.data.channel_statistics import PUBLISHED_STATISTICS
from imta_jax.data.info import DatasetInfo
from imta_jax.data.padding import padded_size


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """Sizes of a dataset.

    Attributes:
      info: name, classes and image shape.
      mean: per channel, of pixels scaled to 0..1; a constant of the programs.
      std: as `mean`.
      examples: images by split.
      are_arrays: whether the images can be stored on the devices.
      is_exact: whether all values are those of the run. `mean` and `std` of datasets that were not
        read may differ, which changes neither memory nor time.
    """

    info: DatasetInfo
    mean: tuple[float, ...]
    std: tuple[float, ...]
    examples: dict[str, int]
    are_arrays: bool
    is_exact: bool

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values, with those of `info` first; see `from_dict`."""
        values = dataclasses.asdict(self)
        return {**values.pop("info")._asdict(), **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataDescription":
        """The inverse of `to_dict`, also after JSON made lists of tuples."""
        values = {n: tuple(x) if isinstance(x, list) else x for n, x in values.items()}
        info = DatasetInfo(*(values.pop(name) for name in DatasetInfo._fields))
        return cls(info, **values)


@dataclasses.dataclass(frozen=True)
class _Published:
    """Classes, image shape and images of a dataset with the splits "train" and `test`."""

    num_classes: int
    shape: tuple[int, int, int]
    train: int
    test: int
    test_split: str = "test"


# tensorflow.org/datasets/catalog. Other datasets are loaded.
_PUBLISHED = {
    "cifar10": _Published(10, (32, 32, 3), 50000, 10000),
    "cifar100": _Published(100, (32, 32, 3), 50000, 10000),
    "fashion_mnist": _Published(10, (28, 28, 1), 60000, 10000),
    "mnist": _Published(10, (28, 28, 1), 60000, 10000),
    "svhn_cropped": _Published(10, (32, 32, 3), 73257, 26032),
    "imagenet2012": _Published(1000, (0, 0, 3), 1281167, 50000, "validation"),
}


def describe_data(config: DataConfig) -> DataDescription:
    """Describes the data of a run. Well-known datasets are not read.

    Args:
      config: the run's `config.data`.

    Raises:
      UserError: see `load_dataset`, for data that must be read.
    """
    published = _PUBLISHED.get(config.source)
    if published is None or not _has_usual_splits(config, published):
        return _description_of(load_dataset(config))
    return _published_description(config, published)


def _has_usual_splits(config: DataConfig, published: _Published) -> bool:
    """Whether the config trains and tests on the published splits, and holds out validation."""
    test = ("auto", published.test_split)
    validation = ("auto", HOLD_OUT) if published.test_split == "test" else (HOLD_OUT,)
    has_one_shape = published.shape[0] > 0 or config.preprocessing == "random_area_crop"
    return (
        has_one_shape
        and config.train_split == "train"
        and config.test_split in test
        and config.validation_split in validation
    )


def _published_description(config: DataConfig, published: _Published) -> DataDescription:
    preprocessing = preprocessing_from(config)
    are_arrays = isinstance(preprocessing, PaddedCrop)
    height, width, channels = published.shape
    if isinstance(preprocessing, PaddedCrop):
        shape = (padded_size(height), padded_size(width), channels)
    else:
        shape = (preprocessing.size, preprocessing.size, 3)
    statistics = PUBLISHED_STATISTICS.get(config.source)
    mean, std = ((0.5,) * shape[2], (0.25,) * shape[2])
    if statistics:
        mean, std = statistics.mean, statistics.std
    examples = {
        "train": published.train - config.validation_examples,
        "validation": config.validation_examples,
        "test": published.test,
    }
    exact = statistics is not None
    info = DatasetInfo(config.source, published.num_classes, shape)
    return DataDescription(info, mean, std, examples, are_arrays, exact)


def _description_of(dataset: Dataset) -> DataDescription:
    return DataDescription(
        DatasetInfo(dataset.name, dataset.num_classes, dataset.image_shape),
        dataset.mean,
        dataset.std,
        {name: len(split) for name, split in dataset.splits.items()},
        isinstance(dataset.preprocessing, PaddedCrop),
        is_exact=True,
    )
