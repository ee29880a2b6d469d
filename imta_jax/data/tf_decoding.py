"""One image, from where it lies to the pixels of a batch, as TensorFlow operations.

A window is cut out while the JPEG is decoded, so that only the needed part is, and a window of many
times the wanted pixels is decoded into a half, a quarter or an eighth of them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from imta_jax.data.encoded import EncodedImages
from imta_jax.data.rows import PADDING_INDEX, Rows
from imta_jax.data.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

# JPEG can be decoded into 1/1, 1/2, 1/4 or 1/8 of the pixels, the last three for less work.
_RATIOS = (1, 2, 4, 8)
# As every other decoder does it; TensorFlow's default is off by up to some levels, and no faster.
_DCT = "INTEGER_ACCURATE"

Read = Callable[..., "tf.Tensor"]


def one_image(
    images: np.ndarray | EncodedImages, rows: Rows, size: int, exact: bool
) -> Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]:
    """Maps a row's number to its image, uint8 [size, size, C], and index; see `resized_batches`."""
    tf = import_tensorflow()
    encoded = isinstance(images, EncodedImages)
    sizes = images.sizes[np.maximum(rows.index, 0)] if encoded else np.array([images.shape[1:3]])
    part = _whole_pixels(rows.window, np.broadcast_to(sizes, (len(rows.index), 2)), size, exact)
    kinds = _kinds(images, rows, part, size, exact)
    window_of, kind_of = _lookup(rows.window), _lookup(kinds)
    part_of, index_of, flip_of = _lookup(part), _lookup(rows.index), _lookup(rows.flip)
    pixels_of = _decoder(images) if encoded else _slicer(images)

    def resized(row: "tf.Tensor", pixels: "tf.Tensor", part: "tf.Tensor") -> "tf.Tensor":
        def filtered() -> "tf.Tensor":
            return _resize(pixels, window_of(row), part, size)

        if exact or not kinds.any():
            return filtered()
        if kinds.all():
            return _stretch(pixels, size)
        # What is no JPEG was not decoded into fewer pixels, and may be many times too large.
        return tf.cond(kind_of(row) == 0, filtered, lambda: _stretch(pixels, size))

    def shown(row: "tf.Tensor", index: "tf.Tensor") -> "tf.Tensor":
        part = part_of(row)
        pixels = resized(row, pixels_of(index, part, kind_of(row)), part)
        image = tf.cast(pixels + 0.5, tf.uint8)  # to the nearest: none is below 0 or above 255
        return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, flip_of(row), False]))

    def one(row: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        index = index_of(row)
        shape = [size, size, 3 if encoded else images.shape[-1]]
        if (rows.index != PADDING_INDEX).all():
            image = shown(row, index)
        else:
            black = tf.zeros(shape, tf.uint8)
            image = tf.cond(index == PADDING_INDEX, lambda: black, lambda: shown(row, index))
        return tf.ensure_shape(image, shape), index

    return one


def _lookup(values: np.ndarray) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    tf = import_tensorflow()
    with tf.device("CPU"):
        table = tf.constant(values)
    return lambda row: tf.gather(table, row)


def _whole_pixels(window: np.ndarray, sizes: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """The windows in whole pixels, int32 [R, 4]; for an exact resize with what its filter reads."""
    corner, extent = window[:, :2], window[:, 2:]
    reach = np.ceil(np.maximum(extent / size, 1)) + 1 if exact else 0
    first = np.maximum(np.floor(corner - reach), 0)
    last = np.minimum(np.ceil(corner + extent + reach), sizes)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def _kinds(
    images: np.ndarray | EncodedImages, rows: Rows, part: np.ndarray, size: int, exact: bool
) -> np.ndarray:
    """How each row is decoded, int32 [R]: 0 whole, or 1 + the place of the ratio in `_RATIOS`."""
    if not isinstance(images, EncodedImages):
        return np.zeros(len(rows.index), np.int32)
    # The smallest picture that has no fewer pixels than what is asked for.
    fewest = part[:, 2:].min(axis=1, initial=1 << 30)
    ratio = np.zeros(len(fewest)) if exact else np.log2(np.maximum(fewest / size, 1))
    kind = 1 + np.minimum(np.floor(ratio), len(_RATIOS) - 1)
    return np.where(images.is_jpeg[np.maximum(rows.index, 0)], kind, 0).astype(np.int32)


def reader(images: EncodedImages) -> Read:
    """Maps an index to the bytes of its file or of the image in its record."""
    tf = import_tensorflow()
    path_of, file_of, offset_of = map(_lookup, (images.files, images.file_id, images.offset))
    if not images.feature:
        return lambda index: tf.io.read_file(path_of(file_of(index)))
    wanted = {images.feature: tf.io.FixedLenFeature([], tf.string)}

    def record(index: "tf.Tensor") -> "tf.Tensor":
        # One record, wherever it lies: the only operation of TensorFlow that starts at an offset.
        at = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path_of(file_of(index))],
            compression_type="",
            buffer_size=0,
            byte_offsets=[offset_of(index)],
        )
        records = tf.data.experimental.from_variant(at, tf.TensorSpec([], tf.string))
        found = records.take(1).get_single_element()
        return tf.io.parse_single_example(found, wanted)[images.feature]

    return record


def _decoder(images: EncodedImages) -> Read:
    """Maps (index, part, kind) to the pixels of that part, at the kind's ratio."""
    tf = import_tensorflow()
    contents_of = reader(images)

    def decode(index: "tf.Tensor", part: "tf.Tensor", kind: "tf.Tensor") -> "tf.Tensor":
        contents = contents_of(index)

        def of_other() -> "tf.Tensor":
            whole = tf.io.decode_image(contents, channels=3, expand_animations=False)
            return whole[part[0] : part[0] + part[2], part[1] : part[1] + part[3]]

        def of_jpeg(ratio: int) -> "tf.Tensor":
            # Both edges to the nearest pixel of the smaller picture.
            first = (part[:2] + ratio // 2) // ratio
            last = (part[:2] + part[2:] + ratio // 2) // ratio
            scaled = tf.concat([first, tf.maximum(last - first, 1)], axis=0)
            return tf.raw_ops.DecodeAndCropJpeg(
                contents=contents,
                crop_window=scaled,
                channels=3,
                ratio=ratio,
                dct_method=_DCT,
            )

        branches = [of_other, *(lambda r=r: of_jpeg(r) for r in _RATIOS)]
        return tf.switch_case(kind, branches)

    return decode


def whole_image(contents: "tf.Tensor") -> "tf.Tensor":
    """A JPEG, PNG, GIF (its first picture) or BMP, uint8 [H, W, 3]."""
    tf = import_tensorflow()
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method=_DCT),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )


def _slicer(images: np.ndarray) -> Read:
    """As `_decoder`, out of an array; there is nothing to decode."""
    image_of = _lookup(images)

    def cut(index: "tf.Tensor", part: "tf.Tensor", kind: "tf.Tensor") -> "tf.Tensor":
        return image_of(index)[part[0] : part[0] + part[2], part[1] : part[1] + part[3]]

    return cut


def _stretch(pixels: "tf.Tensor", size: int) -> "tf.Tensor":
    tf = import_tensorflow()
    resized = tf.raw_ops.ResizeBilinear(
        images=pixels[None], size=[size, size], half_pixel_centers=True
    )
    return resized[0]


def _resize(pixels: "tf.Tensor", window: "tf.Tensor", part: "tf.Tensor", size: int) -> "tf.Tensor":
    """The window, at fractions of pixels, out of the part of the image that was decoded."""
    tf = import_tensorflow()
    scale = size / window[2:]
    resized = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=[size, size],
        scale=scale,
        translation=(tf.cast(part[:2], tf.float32) - window[:2]) * scale,
        kernel_type="triangle",
        antialias=True,
    )
    return resized[0]


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain TensorFlow operations: nothing for AutoGraph to rewrite."""
    return import_tensorflow().autograph.experimental.do_not_convert(function)
