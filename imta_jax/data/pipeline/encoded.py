"""Images that stay compressed until a batch needs them.

Each image is a file, or a record of a TFRecord file. Both can be read in any order. `indexing.py`
finds the images and `host_pipeline.py` reads them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped, UInt8

from imta_jax.data.decoding.exif import displayed_sizes
from imta_jax.data.pipeline.decoder import TF_DATA

WHOLE_FILE = -1


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """N compressed images.

    Attributes:
      files: paths, as bytes.
      file_id: file of each image.
      offset: first byte of the image's record in its file; -1 if the file is the image.
      sizes: height and width in pixels, after `orientation` is applied.
      is_jpeg: whether an image is a JPEG; the others are PNG.
      orientation: the EXIF orientation to apply to stored pixels; 1 applies none.
      feature: key of the image in a record; "" for image files.
      decoder: library that decodes them in batches, see `decoder.py`.
      states: modification time in ns and size in bytes of local files when they were indexed; None
        for others. `changed_images.py` uses them.
    """

    files: Shaped[np.ndarray, " F"]
    file_id: Int32[np.ndarray, " N"]
    offset: Int64[np.ndarray, " N"]
    sizes: Int32[np.ndarray, "N 2"]
    is_jpeg: Bool[np.ndarray, " N"]
    orientation: UInt8[np.ndarray, " N"]
    feature: str = ""
    decoder: str = TF_DATA
    states: Int64[np.ndarray, "N 2"] | None = None

    def __len__(self) -> int:
        return len(self.file_id)

    def __getitem__(self, chosen: np.ndarray | slice) -> "EncodedImages":
        """The images at some positions (integers, a mask or a slice), as for an array."""
        return EncodedImages(
            self.files,
            self.file_id[chosen],
            self.offset[chosen],
            self.sizes[chosen],
            self.is_jpeg[chosen],
            self.orientation[chosen],
            self.feature,
            self.decoder,
            None if self.states is None else self.states[chosen],
        )

    @property
    def stored_sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of the stored pixels."""
        return displayed_sizes(self.sizes, self.orientation)

    @property
    def are_local_files(self) -> bool:
        """Whether they are files of this machine, and neither records nor files in a bucket."""
        return not self.feature and (len(self) == 0 or b"://" not in self.path(0))

    def path(self, index: int | np.integer) -> bytes:
        """The path of the file that holds an image."""
        return self.files[self.file_id[index]].item()

    def name(self, index: int | np.integer) -> str:
        """The location of an image, for messages in one line.

        Bytes that are not UTF-8 and characters that cannot be printed are replaced.
        """
        decoded = self.path(index).decode(errors="replace")
        path = "".join(c if c.isprintable() else "\ufffd" for c in decoded)
        offset = self.offset[index]
        return path if offset == WHOLE_FILE else f"{path}, record at byte {offset}"


def read_file(images: EncodedImages, index: int) -> bytes:
    """The bytes of an image file.

    Raises:
      OSError: the file cannot be read.
    """
    with open(images.path(index), "rb") as file:
        return file.read()
