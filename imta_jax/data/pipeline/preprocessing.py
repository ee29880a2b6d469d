"""Crops: the window of an image that the network gets, in training and in evaluation.

`PaddedCrop` is for small images of one size, `RandomAreaCrop` for images of any size. Windows are
pure functions of image sizes and random words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt64

from imta_jax.config import DataConfig
from imta_jax.data.padding import padding_to
from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform, central_windows
from imta_jax.errors import InputError
from imta_jax.types import PerChannel

_ATTEMPTS = 10
_EXAMPLES_PER_CHUNK = 1 << 16  # limits the memory of random words


def check_at_least(least: int, **values: int) -> None:
    """Raises a ValueError with the name of the first value below `least`."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} must be at least {least}; found {value}")


@dataclass(frozen=True)
class PaddedCrop:
    """A random crop of the original size from the zero-padded image, and a flip (Sec. 4.1, CIFAR).

    Evaluation shows the whole image.

    Attributes:
      padding: pixels of zero padding on every side; 0 for no crop.
      flip: whether crops are mirrored horizontally with probability 1/2.
      source_size: (height, width) of the source's images, which are zero-padded to the network's
        size before; None if they have the network's size.
      exif_orientation: whether decoding ignores or applies it: "ignore" or "apply".
    """

    padding: int
    flip: bool
    source_size: tuple[int, int] | None = field(default=None, compare=False)
    exif_orientation: str = "ignore"

    def __post_init__(self) -> None:
        check_at_least(0, **{"config.data.crop_padding": self.padding})

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raises a ValueError if a crop of images [H, W, C] could contain padding only."""
        if self.padding >= min(shape[:2]):
            raise InputError(
                f"config.data.crop_padding must be less than {min(shape[:2])}, since images have"
                f" {shape[0]} x {shape[1]} pixels (4 is usual for 32 x 32); found {self.padding}"
            )

    def describe(self) -> str:
        """One sentence, for reports."""
        crop = f"Random crop with {self.padding} pixels of padding" if self.padding else "No crop"
        flip = ", random horizontal flip" if self.flip else ""
        return f"{crop}{flip}; evaluation: whole image."

    def train_windows(
        self,
        sizes: Int[np.ndarray, "N 2"],
        words: UInt64[np.ndarray, "N 4"],
        key: np.random.SeedSequence,
    ) -> Float32[np.ndarray, "N 4"]:
        """Random windows (top, left, height, width); `words` are random, `key` is not used."""
        offsets = (words[:, 1:3] % np.uint64(2 * self.padding + 1)).astype(np.float32)
        return np.concatenate([offsets - self.padding, sizes.astype(np.float32)], axis=1)

    def eval_windows(self, sizes: Int[np.ndarray, "N 2"]) -> Float32[np.ndarray, "N 4"]:
        """The whole images."""
        return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32)

    def evaluation_transform(
        self, image_shape: tuple[int, int, int], mean: PerChannel, std: PerChannel
    ) -> EvaluationTransform:
        """The description of the evaluation images; see `EvaluationTransform` for the arguments."""
        size = image_shape[:2]
        source = self.source_size or size
        if source[0] > size[0] or source[1] > size[1]:
            raise InputError(
                f"source_size must be at most {size}, the network's image size; found {source}"
            )
        padding = padding_to(source, size)
        return EvaluationTransform(
            image_shape,
            tuple(mean),
            tuple(std),
            padding,
            exif_orientation=self.exif_orientation,
        )


@dataclass(frozen=True)
class RandomAreaCrop:
    """A random part of the image, resized to one size, and a flip (Sec. 4.2, ImageNet).

    Training: a window with `min_area` to 1 of the image's area and an aspect ratio of 3/4 to 4/3.
    If ten attempts do not fit, the largest central window of such a ratio. The same distribution as
    torchvision's RandomResizedCrop. Evaluation: the shorter side is resized to `resize` pixels, and
    the central `size` pixels are taken.

    Attributes:
      size: pixels per side of the network's input.
      resize: pixels of the shorter side before the central crop, at least `size`.
      min_area: smallest fraction of the area, above 0 and at most 1.
      flip: whether crops are mirrored horizontally with probability 1/2.
      exif_orientation: whether decoding ignores or applies it: "ignore" or "apply".
    """

    size: int
    resize: int
    min_area: float
    flip: bool
    exif_orientation: str = "ignore"

    def __post_init__(self) -> None:
        check_at_least(1, **{"config.data.image_size": self.size})
        if self.resize < self.size:
            raise InputError(
                f"config.data.resize must be at least {self.size}, the value of"
                f" config.data.image_size; found {self.resize}"
            )
        if not 0 < self.min_area <= 1:
            raise InputError(
                f"config.data.min_area must be above 0 and at most 1; found {self.min_area}"
            )

    def describe(self) -> str:
        """One sentence, for reports."""
        flip = ", random horizontal flip" if self.flip else ""
        return (
            f"Random crop of {self.min_area:.0%} to 100% of the area, resized to {self.size} pixels"
            f" per side{flip}; evaluation: shorter side resized to {self.resize}, central"
            f" {self.size} pixels."
        )

    def train_windows(
        self,
        sizes: Int[np.ndarray, "N 2"],
        words: UInt64[np.ndarray, "N 4"],
        key: np.random.SeedSequence,
    ) -> Float32[np.ndarray, "N 4"]:
        """Random windows in whole pixels; random words come from `key`, `words` is not used."""
        generator, count = np.random.Philox(key), len(sizes)
        chunks = []
        for start in range(0, count, _EXAMPLES_PER_CHUNK):
            chunk = sizes[start : start + _EXAMPLES_PER_CHUNK]
            random_words = generator.random_raw(4 * _ATTEMPTS * len(chunk))
            uniform = (random_words.reshape(len(chunk), _ATTEMPTS, 4) >> 11) * 2.0**-53
            chunks.append(self._windows(chunk.astype(np.float64), uniform))
        return np.concatenate(chunks).astype(np.float32)

    def _windows(
        self, sizes: Float64[np.ndarray, "N 2"], uniform: Float64[np.ndarray, "N attempts 4"]
    ) -> Float64[np.ndarray, "N 4"]:
        """The first attempt that fits into the image, or the central window.

        Args:
          sizes: height and width of each image.
          uniform: random numbers in [0, 1) for area, aspect ratio, top and left of each attempt.
        """
        image_height, image_width = (sizes[:, i, np.newaxis] for i in (0, 1))  # [N, 1]
        area = image_height * image_width * (self.min_area + (1 - self.min_area) * uniform[..., 0])
        ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniform[..., 1])
        height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        fits = (height >= 1) & (width >= 1) & (height <= image_height) & (width <= image_width)
        top = np.floor(uniform[..., 2] * (image_height - height + 1))
        left = np.floor(uniform[..., 3] * (image_width - width + 1))
        attempts = np.stack([top, left, height, width], axis=-1)
        first = attempts[np.arange(len(sizes)), fits.argmax(axis=1)]
        return np.where(fits.any(axis=1)[:, np.newaxis], first, _central_windows(sizes))

    def eval_windows(self, sizes: Int[np.ndarray, "N 2"]) -> Float32[np.ndarray, "N 4"]:
        """The windows that resizing and the central crop leave, in fractions of image pixels."""
        return central_windows(sizes, self.resize, (self.size, self.size))

    def evaluation_transform(
        self, image_shape: tuple[int, int, int], mean: PerChannel, std: PerChannel
    ) -> EvaluationTransform:
        """The description of the evaluation images; see `EvaluationTransform` for the arguments."""
        return EvaluationTransform(
            image_shape,
            tuple(mean),
            tuple(std),
            resize=self.resize,
            exif_orientation=self.exif_orientation,
        )


Preprocessing = PaddedCrop | RandomAreaCrop
NO_AUGMENTATION = PaddedCrop(padding=0, flip=False)


def preprocessing_from(config: DataConfig) -> Preprocessing:
    """Makes the preprocessing that `config.data` describes.

    Raises:
      ValueError: `resize` is below `image_size`.
    """
    if config.preprocessing == "padded_crop":
        return PaddedCrop(
            config.crop_padding, config.flip, exif_orientation=config.exif_orientation
        )
    return RandomAreaCrop(
        config.image_size, config.resize, config.min_area, config.flip, config.exif_orientation
    )


def _central_windows(sizes: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N 4"]:
    """The largest central windows with an aspect ratio of 3/4 to 4/3."""
    height, width = sizes.T
    crop_width = np.minimum(width, np.rint(height * 4 / 3))
    crop_height = np.minimum(height, np.rint(width * 4 / 3))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return np.stack([top, left, crop_height, crop_width], axis=-1)
