"""The description of a dataset that does not need its images."""

from typing import NamedTuple


class DatasetInfo(NamedTuple):
    """What a network is built for.

    Attributes:
      name: name of the dataset.
      num_classes: number of classes K.
      image_shape: (H, W, C) of the network's input.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
