"""The transform from a decoded image to the network's input in evaluation, as a description.

An export stores the description, and image files are classified by it. The evaluation pipeline
makes the same pixels, bit for bit. This module needs NumPy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from imta_jax.data.padding import pad_images
from imta_jax.errors import InputError

EXIF_ORIENTATIONS = ("ignore", "apply")
COLORS = {1: "gray", 3: "rgb"}  # by number of channels
RESIZE_FILTER = "triangle"  # bilinear with antialiasing; its support grows with the reduction

_FIELDS = (
    "exif_orientation",
    "color",
    "source_size",
    "resize",
    "resize_filter",
    "crop",
    "padding",
    "mean",
    "std",
)

Padding = tuple[tuple[int, int], tuple[int, int]]
NO_PADDING: Padding = ((0, 0), (0, 0))


@dataclass(frozen=True)
class EvaluationTransform:
    """How evaluation makes the network's input from an image.

    The steps: EXIF orientation, conversion to gray or RGB, resize and central crop, zero padding,
    normalization (pixel / 255 - mean) / std. The first two belong to decoding, `apply` executes the
    next two, and `imta_jax.nn.pixels.normalize` the last.

    Attributes:
      image_shape: (H, W, C) of the network's input.
      mean: per channel, of pixels scaled to 0..1.
      std: standard deviation per channel, above 0.
      padding: zero pixels ((above, below), (left, right)) around images of `source_size`; None if
        it is unknown whether images were padded.
      resize: pixels of the shorter side before the central crop of H x W; None if images have one
        size and are not resized.
      exif_orientation: "ignore" (pixels as stored in the file) or "apply".
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: Padding | None = NO_PADDING
    resize: int | None = None
    exif_orientation: str = "ignore"

    @property
    def source_size(self) -> tuple[int, int]:
        """(height, width) of images before padding. Only images that are not resized have it."""
        (above, below), (left, right) = self.padding or NO_PADDING
        return self.image_shape[0] - above - below, self.image_shape[1] - left - right

    def accepted(self) -> str:
        """The image sizes that `apply` accepts, for messages."""
        height, width, _ = self.image_shape
        if self.resize is not None:
            return "images of any size"
        network = f"{height} x {width} pixels (height x width)"
        if self.padding is None:
            return (
                f"{network}; format version 1 does not record how smaller images were padded: "
                "export the network again"
            )
        if self.padding == NO_PADDING:
            return network
        source = " x ".join(map(str, self.source_size))
        return f"{source} pixels, which are zero-padded as in training, or {network}"

    def apply(self, image: UInt8[np.ndarray, "h w C"]) -> UInt8[np.ndarray, "H W C"]:
        """Resizes and crops, or pads, a decoded image.

        Args:
          image: decoded pixels in the network's channels.

        Raises:
          ValueError: the image has another size than `accepted`.
        """
        if self.resize is None:
            return self.pad(image[None])[0]
        height, width, _ = self.image_shape
        (window,) = central_windows(np.array([image.shape[:2]]), self.resize, (height, width))
        return resize_window(image, window, (height, width))

    def pad(self, images: np.ndarray, value: float | np.ndarray = 0) -> np.ndarray:
        """Pads a batch of `source_size`; returns a batch of the network's size unchanged.

        Args:
          images: [N, h, w, C].
          value: value of the padding, one number or one per channel.

        Raises:
          ValueError: the images have another size.
        """
        size = images.shape[1:3]
        if size == self.image_shape[:2]:
            return images
        if self.resize is None and self.padding is not None and size == self.source_size:
            return pad_images(images, self.padding, value)
        raise InputError(f"the image has {size[0]} x {size[1]} pixels; expected {self.accepted()}")

    def describe(self) -> str:
        """One paragraph, for reports."""
        height, width, _ = self.image_shape
        if self.resize is not None:
            geometry = (
                f"Resize of the shorter side to {self.resize} pixels (bilinear, antialiased), "
                f"central crop of {height} x {width} pixels."
            )
        elif self.padding is None or self.padding == NO_PADDING:
            geometry = f"Images of {height} x {width} pixels; no resizing."
        else:
            (above, below), (left, right) = self.padding
            geometry = (
                f"Images of {' x '.join(map(str, self.source_size))} pixels, zero-padded to "
                f"{height} x {width} ({above} rows above, {below} below, {left} columns left, "
                f"{right} right); no resizing."
            )
        exif = {"ignore": "is ignored", "apply": "is applied"}[self.exif_orientation]
        return (
            f"{geometry} The EXIF orientation {exif}. Then (pixel / 255 - mean) / std per channel."
        )

    def to_dict(self) -> dict[str, Any]:
        """The description as values that JSON can store."""
        resized = self.resize is not None
        return {
            "description": self.describe(),
            "exif_orientation": self.exif_orientation,
            "color": COLORS.get(self.image_shape[2]),
            "source_size": None if resized else list(self.source_size),
            "resize": self.resize,
            "resize_filter": RESIZE_FILTER if resized else None,
            "crop": list(self.image_shape[:2]) if resized else None,
            "padding": None if self.padding is None else [list(pair) for pair in self.padding],
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
        }


def transform_from_dict(
    fields: Mapping[str, Any], image_shape: tuple[int, int, int], version: int
) -> EvaluationTransform:
    """Reads a description that `EvaluationTransform.to_dict` wrote.

    Args:
      fields: the description.
      image_shape: (H, W, C) of the network's input.
      version: format version of the export. Version 1 has `resize`, `mean` and `std` only. It does
        not say whether images were padded, so that only the network's size is accepted, and its
        writer ignored the EXIF orientation.

    Raises:
      ValueError: a field is missing or has an invalid value. The message starts with its name.
    """
    required = ("resize", "mean", "std") if version == 1 else _FIELDS
    for name in required:
        if name not in fields:
            raise InputError(f"{name} is missing")
    later = [name for name in _FIELDS if name in fields and name not in required]
    if later:  # the version was changed: without it, images would be neither padded nor checked
        raise InputError(
            f"{later[0]} is {fields[later[0]]!r}; format_version is {version}, which has no such"
            " field; expected format_version 2"
        )
    resize, size, channels = fields["resize"], image_shape[:2], image_shape[2]
    if resize is not None and (type(resize) is not int or resize < max(size)):
        raise InputError(f"resize must be null, or an integer from {max(size)}; found {resize!r}")
    exif = fields.get("exif_orientation", "ignore")
    if exif not in EXIF_ORIENTATIONS:
        raise InputError(f"exif_orientation must be one of {EXIF_ORIENTATIONS}; found {exif!r}")
    transform = EvaluationTransform(
        image_shape,
        _numbers("mean", fields["mean"], channels, least=0.0),
        _numbers("std", fields["std"], channels, least=np.finfo(np.float32).tiny.item()),
        None if version == 1 and resize is None else _padding(fields, size, resize),
        resize,
        exif,
    )
    # The other fields follow from these; a file in which they differ describes another transform.
    for name, value in transform.to_dict().items():
        if name in required and fields[name] != value:
            raise InputError(f"{name} must be {value!r}; found {fields[name]!r}")
    return transform


def central_windows(
    sizes: Int[np.ndarray, "N 2"], resize: int, crop: tuple[int, int]
) -> Float32[np.ndarray, "N 4"]:
    """The windows that a resize of the shorter side and a central crop leave.

    Args:
      sizes: height and width of each image.
      resize: pixels of the shorter side after the resize.
      crop: height and width of the crop.

    Returns:
      Top, left, height and width, in fractions of image pixels.
    """
    sizes, size = sizes.astype(np.float64), np.array(crop)
    shorter = sizes.min(axis=1, keepdims=True)
    resized = np.floor(resize * sizes / shorter)
    scale = resized / sizes
    corner = np.rint((resized - size) / 2)
    return np.concatenate([corner / scale, size / scale], axis=1).astype(np.float32)


def read_pixels(
    windows: Float32[np.ndarray, "N 4"],
    sizes: Int[np.ndarray, "N 2"],
    size: int | tuple[int, int],
) -> Int32[np.ndarray, "N 4"]:
    """The windows in whole pixels with the support of the resize filter.

    Args:
      windows: top, left, height and width, in fractions of image pixels.
      sizes: height and width of each image.
      size: height and width after the resize.

    Returns:
      Top, left, height and width, inside the image.
    """
    corner, extent = windows[:, :2], windows[:, 2:]
    support = np.ceil(np.maximum(extent / size, 1)) + 1
    first = np.maximum(np.floor(corner - support), 0)
    last = np.minimum(np.ceil(corner + extent + support), sizes)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def resize_window(
    image: UInt8[np.ndarray, "h w C"], window: Float32[np.ndarray, "4"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W C"]:
    """Resizes a window of an image with an antialiased triangle filter.

    Every operation is a float32 operation in the order of TensorFlow's `ScaleAndTranslate`, which
    the evaluation pipeline uses, so that both give the same pixels.

    Args:
      image: decoded pixels.
      window: top, left, height and width, in fractions of pixels.
      size: height and width of the result.
    """
    (cut,) = read_pixels(window[None], np.array([image.shape[:2]]), size)
    top, left, height, width = cut.tolist()
    return resize_cut(image[top : top + height, left : left + width], window, cut, size)


def resize_cut(
    pixels: UInt8[np.ndarray, "h w C"],
    window: Float32[np.ndarray, "4"],
    cut: Int32[np.ndarray, "4"],
    size: tuple[int, int],
) -> UInt8[np.ndarray, "H W C"]:
    """Resizes a window of an image, of which only a part was decoded; see `resize_window`.

    Args:
      pixels: the decoded part.
      window: top, left, height and width in the image, in fractions of pixels.
      cut: top, left, height and width of the decoded part in the image.
      size: height and width of the result.
    """
    scale = np.array(size, np.float32) / window[2:]
    translation = (cut[:2].astype(np.float32) - window[:2]) * scale
    for axis in (0, 1):  # the second time, height and width are exchanged
        positions, weights = _filter(size[axis], len(pixels), scale[axis], translation[axis])
        resized = np.zeros((size[axis], *pixels.shape[1:]), np.float32)
        for k in range(positions.shape[1]):
            taps = pixels[positions[:, k]]
            resized += np.multiply(taps, weights[:, k, None, None], dtype=np.float32)
        pixels = np.ascontiguousarray(resized.swapaxes(0, 1))
    return (pixels + np.float32(0.5)).astype(np.uint8)  # rounds to the nearest level


def _filter(
    outputs: int, inputs: int, scale: np.float32, translation: np.float32
) -> tuple[Int[np.ndarray, "outputs taps"], Float32[np.ndarray, "outputs taps"]]:
    """Input positions and weights of each output position, along one axis."""
    one, half = np.float32(1), np.float32(0.5)
    inverse = np.float32(1 / np.float64(scale))
    center = (np.arange(outputs, dtype=np.float32) + half) * inverse + -inverse * translation
    radius = np.maximum(inverse, one)
    start = np.clip(np.ceil(center - radius - half).astype(np.int64), 0, inputs - 1)
    end = np.clip(np.floor(center + radius - half).astype(np.int64), 0, inputs - 1) + 1
    taps = start[:, None] + np.arange((end - start).max())
    distance = np.abs((taps.astype(np.float32) + half - center[:, None]) * (one / radius))
    weights = np.where(taps < end[:, None], np.maximum(one - distance, 0), 0).astype(np.float32)
    total = np.zeros(outputs, np.float32)
    for column in weights.T:  # in order, as TensorFlow sums
        total += column
    return np.minimum(taps, inputs - 1), weights * (one / total)[:, None]


def _padding(fields: Mapping[str, Any], size: tuple[int, int], resize: int | None) -> Padding:
    value = fields.get("padding", NO_PADDING)
    try:
        (above, below), (left, right) = value
    except (TypeError, ValueError):
        above = below = left = right = -1
    counts = (above, below, left, right)
    valid = all(type(count) is int and count >= 0 for count in counts)
    if not valid or above + below >= size[0] or left + right >= size[1]:
        raise InputError(
            f"padding is {value!r}; expected [[above, below], [left, right]] in pixels, less than "
            f"{size[0]} and {size[1]} together"
        )
    if resize is not None and any(counts):
        raise InputError(f"padding must be zeros, since resize is {resize}; found {value!r}")
    return (above, below), (left, right)


def _numbers(name: str, value: Any, count: int, least: float) -> tuple[float, ...]:
    numbers = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != count or not all(least <= v < np.inf for v in value):
        raise InputError(
            f"{name} must be {count} finite numbers, none below {least:g}; found {value!r}"
        )
    return tuple(map(float, value))
