"""Reasons for which an image file is rejected by training, evaluation and inference alike."""

import enum

from imta_jax.errors import InputError

MAX_PIXELS = 2**29 // 3  # the limit of TensorFlow's decoder for RGB, and of Pillow
# Encoders write about 10. Each takes time for all pixels, however few bytes it has.
MAX_SCANS = 100
# Pixels at 3 bytes without any compression are half of it. Larger files are not read into memory.
MAX_FILE_BYTES = 2**30


class Refusal(enum.IntEnum):
    """Why a file is rejected. The numbers are stored in indexes and must not change."""

    NONE = 0
    UNREADABLE = 1
    NOT_A_FILE = 2
    EMPTY = 3
    OTHER_FORMAT = 4
    JPEG_CODING = 5
    JPEG_COMPONENTS = 6
    TOO_LARGE = 7
    TRUNCATED = 8
    DAMAGED = 9
    JPEG_SCANS = 10
    LARGE_FILE = 11

    @property
    def reason(self) -> str:
        """A few words for messages; "" if the file is accepted."""
        return _REASONS[self]


_REASONS = {
    Refusal.NONE: "",
    Refusal.UNREADABLE: "cannot be read",
    Refusal.NOT_A_FILE: "not a regular file",
    Refusal.EMPTY: "empty file",
    Refusal.OTHER_FORMAT: "neither JPEG nor PNG",
    Refusal.JPEG_CODING: "JPEG that is not 8-bit Huffman-coded baseline or progressive",
    Refusal.JPEG_COMPONENTS: "JPEG with 2 components, or with 4 and no Adobe marker",
    Refusal.TOO_LARGE: f"more than {MAX_PIXELS:,} pixels",
    Refusal.TRUNCATED: "truncated",
    Refusal.DAMAGED: "damaged",
    Refusal.JPEG_SCANS: f"JPEG with more than {MAX_SCANS} scans",
    Refusal.LARGE_FILE: f"more than {MAX_FILE_BYTES:,} bytes",
}


class RefusedImageError(InputError):
    """An image file that is rejected.

    Attributes:
      refusal: the reason.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
