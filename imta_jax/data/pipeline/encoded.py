"""Images that stay compressed until a batch asks for them: where each one lies, and its size.

A JPEG file, or a record of a TFRecord file; both can be read at random, so that the order of an
epoch is free. Found by `indexing.py`, read by `tf_pipeline.py`.
"""

import os
from dataclasses import dataclass

import numpy as np

WHOLE_FILE = -1


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """N compressed images.

    Attributes:
      files: bytes [F], paths.
      file_id: int32 [N], which of the files an image is in.
      offset: int64 [N], the first byte of its record there; -1 where the file is the image.
      sizes: int32 [N, 2], height and width in pixels.
      is_jpeg: bool [N]; the others are PNG, GIF or BMP.
      feature: the key under which a record holds the image; "" for files.
    """

    files: np.ndarray
    file_id: np.ndarray
    offset: np.ndarray
    sizes: np.ndarray
    is_jpeg: np.ndarray
    feature: str = ""

    def __len__(self) -> int:
        return len(self.file_id)

    def __getitem__(self, chosen: np.ndarray) -> "EncodedImages":
        """The images at some positions (integers or a mask), as `images[chosen]` of an array."""
        per_image = (self.file_id, self.offset, self.sizes, self.is_jpeg)
        return EncodedImages(self.files, *(values[chosen] for values in per_image), self.feature)

    def name(self, index: int) -> str:
        """Where an image is, for a message."""
        path = os.fsdecode(self.files[self.file_id[index]])
        at = self.offset[index]
        return path if at == WHOLE_FILE else f"{path}, record at byte {at}"
