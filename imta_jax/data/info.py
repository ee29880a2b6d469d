"""What a network must know of a dataset, without its images where that can be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from imta_jax.data.dataset import SIZE_MULTIPLE, load_dataset
from imta_jax.data.pipeline.preprocessing import PaddedCrop, preprocessing_from
from imta_jax.data.sources import tfds_description


class DatasetInfo(NamedTuple):
    """What a network is built for.

    Attributes:
      name: of the dataset.
      num_classes: K.
      image_shape: (H, W, C), as the network sees the images.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]


def dataset_info(config: Mapping[str, Any]) -> DatasetInfo:
    """Facts of the dataset that `config.data` names; of one of TFDS nothing is downloaded or read.

    Args:
      config: `config.data` (configs/common.py).

    Raises:
      ValueError, FileNotFoundError, ...: as `load_dataset`, for any other source.
    """
    described = tfds_description(config["source"])
    if described is None:
        dataset = load_dataset(config)
        return DatasetInfo(dataset.name, dataset.num_classes, dataset.image_shape)
    name, classes, shape = described
    preprocessing = preprocessing_from(config)
    if not isinstance(preprocessing, PaddedCrop):
        return DatasetInfo(name, classes, (preprocessing.size, preprocessing.size, 3))
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in shape[:2])
    return DatasetInfo(name, classes, (height, width, shape[2]))
