"""One split of a dataset: images and labels in a fixed order."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from imta_jax.data.pipeline.encoded import EncodedImages


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
      images: pixels, or N encoded images.
      labels: class of each image, from 0.
      source_index: position of each example in the source's split. For a held-out image this is its
        position among the source's training images.
    """

    images: UInt8[np.ndarray, "N H W C"] | EncodedImages
    labels: Int32[np.ndarray, " N"]
    source_index: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def array(self) -> UInt8[np.ndarray, "N H W C"]:
        """The images of a split that is not encoded."""
        assert isinstance(self.images, np.ndarray)
        return self.images

    @property
    def sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of each image."""
        if isinstance(self.images, EncodedImages):
            return self.images.sizes
        return np.broadcast_to(np.array(self.array.shape[1:3], np.int32), (len(self), 2))

    def select(self, chosen: np.ndarray) -> "Split":
        """The examples at some positions (integers [M] or a mask [N])."""
        return Split(self.images[chosen], self.labels[chosen], self.source_index[chosen])
