"""The description of a dataset that does not need its images."""

from typing import NamedTuple


class DatasetInfo(NamedTuple):
    """Name, number of classes and image shape of a dataset, which define a network.

    Attributes:
      name: name of the dataset.
      num_classes: number of classes K.
      image_shape: (H, W, C) of the network's input.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
