"""Which part of an image is shown: its window, drawn from random words that are handed in.

`PaddedCrop` is for small images of one size, `RandomAreaCrop` for photographs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imta_jax.errors import unknown_name

_TRIES = 10
_EXAMPLES_AT_ONCE = 1 << 16  # of which random words are held in memory


def check_at_least(least: int, **values: int) -> None:
    """Refuses, by name, a value below the least: a ValueError."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


@dataclass(frozen=True)
class PaddedCrop:
    """Zeros on each side, a random crop of the original size, mirrored (Sec. 4.1, CIFAR).

    Attributes:
      padding: pixels of zeros of which the crop may take some; 0 for no crop.
      flip: whether half of the images are mirrored.
    """

    padding: int
    flip: bool

    def __post_init__(self) -> None:
        check_at_least(0, **{"config.data.crop_padding": self.padding})

    def check_fits(self, shape: Sequence[int]) -> None:
        """Refuses (ValueError) crops that would show nothing of images [H, W, C]."""
        if self.padding >= min(shape[:2]):
            raise ValueError(
                f"config.data.crop_padding is {self.padding}, expected fewer pixels than the"
                f" images' {shape[0]} x {shape[1]}: a crop would show none (4 of 32 is usual)"
            )

    def describe(self) -> str:
        """One sentence, for a report."""
        crop = f"Padded by {self.padding} pixels and cropped at random" if self.padding else "Whole"
        return f"{crop}{', half of them mirrored' if self.flip else ''}; judged as they are."

    def train_windows(self, sizes: np.ndarray, words: np.ndarray, key: Any) -> np.ndarray:
        """Windows float32 [N, 4]; `sizes` int [N, 2], `words` uint64 [N, 4] random."""
        offsets = (words[:, 1:3] % np.uint64(2 * self.padding + 1)).astype(np.float32)
        return np.concatenate([offsets - self.padding, sizes.astype(np.float32)], axis=1)

    def eval_windows(self, sizes: np.ndarray) -> np.ndarray:
        """The whole image, float32 [N, 4]."""
        return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32)


@dataclass(frozen=True)
class RandomAreaCrop:
    """A random part of the image, brought to one size, mirrored (ImageNet, Sec. 4.2).

    Ten tries of a window with `min_area` to 1 of the image's area and a ratio of 3/4 to 4/3, then
    the largest central one of such a ratio. Judged: the shorter side is brought to `resize`, and
    the central `size` pixels are taken.

    Attributes:
      size: pixels per side of what comes out.
      resize: shorter side before the central crop, at least `size`.
      min_area: share of the area, above 0 and at most 1.
      flip: whether half of the images are mirrored.
    """

    size: int
    resize: int
    min_area: float
    flip: bool

    def __post_init__(self) -> None:
        check_at_least(1, **{"config.data.image_size": self.size})
        if self.resize < self.size:
            raise ValueError(
                f"config.data.resize is {self.resize}, expected at least image_size, {self.size}"
            )
        if not 0 < self.min_area <= 1:
            raise ValueError(
                f"config.data.min_area is {self.min_area}, expected above 0, at most 1"
            )

    def describe(self) -> str:
        """One sentence, for a report."""
        flip = ", half of them mirrored" if self.flip else ""
        return (
            f"A part of {self.min_area:.0%} to 100% of the area at random, brought to {self.size}"
            f" pixels a side{flip}; judged: shorter side to {self.resize}, central {self.size}"
            " pixels."
        )

    def train_windows(self, sizes: np.ndarray, words: np.ndarray, key: Any) -> np.ndarray:
        """Windows of whole pixels, float32 [N, 4]; `sizes` int [N, 2], `key` of more words."""
        generator, count = np.random.Philox(key), len(sizes)
        parts = []
        for start in range(0, count, _EXAMPLES_AT_ONCE):
            some = sizes[start : start + _EXAMPLES_AT_ONCE]
            raw = generator.random_raw(4 * _TRIES * len(some)).reshape(len(some), _TRIES, 4)
            parts.append(self._windows(some.astype(np.float64), (raw >> 11) * 2.0**-53))
        return np.concatenate(parts).astype(np.float32)

    def _windows(self, sizes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """The first try that fits, or the centre; `uniform` [N, tries, 4] in 0..1."""
        image_height, image_width = (sizes[:, i, np.newaxis] for i in (0, 1))  # [N, 1]
        area = image_height * image_width * (self.min_area + (1 - self.min_area) * uniform[..., 0])
        ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniform[..., 1])
        height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (height >= 1) & (width >= 1) & (height <= image_height) & (width <= image_width)
        top = np.floor(uniform[..., 2] * (image_height - height + 1))
        left = np.floor(uniform[..., 3] * (image_width - width + 1))
        tries = np.stack([top, left, height, width], axis=-1)
        first = tries[np.arange(len(sizes)), fits.argmax(axis=1)]
        return np.where(fits.any(axis=1)[:, np.newaxis], first, _central(sizes))

    def eval_windows(self, sizes: np.ndarray) -> np.ndarray:
        """float32 [N, 4], in fractions of pixels: what resizing and cropping would leave."""
        sizes = sizes.astype(np.float64)
        shorter = sizes.min(axis=1, keepdims=True)
        resized = np.floor(self.resize * sizes / shorter)
        scale = resized / sizes
        corner = np.rint((resized - self.size) / 2)
        return np.concatenate([corner / scale, self.size / scale], axis=1).astype(np.float32)


Preprocessing = PaddedCrop | RandomAreaCrop
NO_AUGMENTATION = PaddedCrop(padding=0, flip=False)


def preprocessing_from(config: Mapping[str, Any]) -> Preprocessing:
    """Reads `config.data`: `preprocessing` and the fields of the one it names.

    Raises:
      ValueError: an unknown name or a number that does not fit.
    """
    kind = config.get("preprocessing", "padded_crop")
    if kind == "padded_crop":
        return PaddedCrop(config.get("crop_padding", 4), config.get("flip", True))
    if kind == "random_area_crop":
        names = ("image_size", "resize", "min_area", "flip")
        return RandomAreaCrop(*(config[name] for name in names))
    raise unknown_name("config.data.preprocessing", kind, ["padded_crop", "random_area_crop"])


def _central(sizes: np.ndarray) -> np.ndarray:
    """The largest central window with a ratio of 3/4 to 4/3, [N, 4]."""
    height, width = sizes.T
    shown_width = np.minimum(width, np.rint(height * 4 / 3))
    shown_height = np.minimum(height, np.rint(width * 4 / 3))
    top, left = (height - shown_height) // 2, (width - shown_width) // 2
    return np.stack([top, left, shown_height, shown_width], axis=-1)
