"""Decoding of encoded images and arrays to the pixels of a window, as TensorFlow operations.

A JPEG is cropped while it is decoded, so that only the required part is decompressed. A window with
many more pixels than required is decoded at a half, a quarter or an eighth of the resolution.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from imta_jax.data.decoding.exif import displayed_sizes, stored_windows
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import DecodeGroups
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.evaluation_transform import read_pixels
from imta_jax.data.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

# A JPEG can be decoded at 1/1, 1/2, 1/4 or 1/8 of its resolution, the last three for less work.
_RATIOS = (1, 2, 4, 8)
# Width of a JPEG block for all chroma subsamplings except 4:1:1. A crop that starts at a multiple
# is decoded in place; otherwise TensorFlow copies every pixel row, 4% of the time.
_BLOCK = 16
# The method of other decoders. TensorFlow's default is off by some levels and not faster.
_DCT = "INTEGER_ACCURATE"

Read = Callable[["tf.Tensor"], "list[tf.Tensor]"]
Decoder = Callable[..., "list[tf.Tensor]"]
_decoders: WeakKeyDictionary[EncodedImages, dict[Any, Decoder]] = WeakKeyDictionary()


class DecodePlan(NamedTuple):
    """What is decoded for each of R positions of `BatchIndices`.

    Attributes:
      index: int64 [R], the example; 0 for padding.
      window: float32 [R, 4], the crop, in pixels of the image.
      cut: int32 [R, 4], the decoded part, in pixels of the image at the resolution it is decoded
        at.
      kind: int32 [R], how it is decoded: 0 for the whole image, or 1 + position of the ratio in
        `_RATIOS`.
      margin: int32 [R], decoded columns before the window.
      width: int32 [R], decoded columns of the window.
      orientation: uint8 [R], the EXIF orientation to apply afterwards; `window` and `cut` are in
        stored pixels.
    """

    index: np.ndarray
    window: np.ndarray
    cut: np.ndarray
    kind: np.ndarray
    margin: np.ndarray
    width: np.ndarray
    orientation: np.ndarray


def plan_decoding(
    images: np.ndarray | EncodedImages, indices: BatchIndices, size: int, exact: bool
) -> DecodePlan:
    """Plans how images are decoded; see `tf_pipeline.resized_batches` for the arguments."""
    index = np.maximum(indices.index, 0)
    is_encoded = isinstance(images, EncodedImages)
    sizes = images.sizes[index] if is_encoded else np.array([images.shape[1:3]])
    sizes = np.broadcast_to(sizes, (len(index), 2))
    window, orientation = indices.window, np.ones(len(index), np.uint8)
    if is_encoded and (images.orientation != 1).any():
        orientation = images.orientation[index]
        window = stored_windows(window, sizes, orientation)
        sizes = displayed_sizes(sizes, orientation)
    part = _whole_pixels(window, sizes, size, exact)
    kind = np.zeros(len(index), np.int32)
    if is_encoded:
        kind = np.where(images.is_jpeg[index], _jpeg_kind(part, size, exact), kind)
    # Both edges are rounded to the nearest pixel at the reduced resolution.
    ratio = np.array([1, *_RATIOS], np.int32)[kind][:, None]
    first = (part[:, :2] + ratio // 2) // ratio
    last = np.maximum((part[:, :2] + part[:, 2:] + ratio // 2) // ratio, first + 1)
    before, after = _extra_columns(first[:, 1] * ratio[:, 0], sizes[:, 1] - last[:, 1], kind)
    before //= ratio[:, 0]
    width = last[:, 1] - first[:, 1]
    first[:, 1] -= before
    last[:, 1] += after
    cut = np.concatenate([first, last - first], axis=1)
    resized = (kind == 0) | exact  # resized in TensorFlow's graph, which drops the extra columns
    margin, width = np.where(resized, 0, before), np.where(resized, size, width)
    return DecodePlan(index, window, cut, kind, margin, width, orientation)


def _whole_pixels(window: np.ndarray, sizes: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """The windows in whole pixels, int32 [R, 4]; if exact, including the filter's support."""
    if exact:
        return read_pixels(window, sizes, size)
    corner, extent = window[:, :2], window[:, 2:]
    first = np.maximum(np.floor(corner), 0)
    last = np.minimum(np.ceil(corner + extent), sizes)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def _jpeg_kind(part: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """The kind with the lowest resolution that has at least `size` pixels per side, int32 [R]."""
    shorter = part[:, 2:].min(axis=1, initial=1 << 30)
    ratio = np.zeros(len(shorter)) if exact else np.log2(np.maximum(shorter / size, 1))
    return 1 + np.minimum(np.floor(ratio), len(_RATIOS) - 1).astype(np.int32)


def _extra_columns(
    start: np.ndarray, remaining: np.ndarray, kind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The number of columns to decode before and after a window.

    At full resolution at least one on each side, since chroma that is stored for two columns at a
    time is interpolated between neighbors.

    Args:
      start: int [R], first column of the window, in pixels of the image.
      remaining: int [R], columns after the last column of the window.
      kind: see `DecodePlan`.
    """
    before, full = start % _BLOCK, kind == 1
    before = np.where(full & (before == 0) & (start > 0), _BLOCK, before)
    return np.where(kind > 0, before, 0), np.where(full, np.minimum(remaining, 1), 0)


def max_group_bytes(
    images: np.ndarray | EncodedImages, plan: DecodePlan, groups: DecodeGroups
) -> int:
    """The largest memory of a group's decoded pixels, before they are resized."""
    if isinstance(images, np.ndarray):
        return int(images[0].nbytes * groups.places.shape[1])
    whole = images.sizes[plan.index]  # images other than JPEGs are decoded completely
    decoded = (plan.cut[:, 2:] if groups.kind else whole).astype(np.int64)
    return int(3 * decoded[groups.places].prod(axis=-1).sum(axis=1).max())


def make_decoder(
    images: np.ndarray | EncodedImages, kind: int, count: int, size: int, exact: bool
) -> Decoder:
    """Makes a function from index, window and cut of `count` images to uint8 [h, w, C] each.

    For encoded images it is made once and not in each epoch, since tracing takes up to 50 ms.

    Args:
      images: encoded images, or an array.
      kind: how the images are decoded; for it and the function's arguments see `DecodePlan`.
      count: number of images.
      size: required pixels per side.
      exact: see `tf_pipeline.resized_batches`. If True, the result has that size. Otherwise crops
        of JPEGs are not resized.
    """
    if isinstance(images, np.ndarray):
        return _new_decoder(images, kind, count, size, exact)
    made, key = _decoders.setdefault(images, {}), (kind, count, size, exact)
    if key not in made:
        made[key] = _new_decoder(images, *key)
    return made[key]


def _new_decoder(
    images: np.ndarray | EncodedImages, kind: int, count: int, size: int, exact: bool
) -> Decoder:
    # The function must not refer to `images`, or they would never be freed.
    tf, read, encoded = import_tensorflow(), _reader_of(images), isinstance(images, EncodedImages)

    def decode(source: "tf.Tensor", window: "tf.Tensor", cut: "tf.Tensor") -> "tf.Tensor":
        pixels = _decode_cut(encoded, kind, source, cut)
        if kind and not exact:
            return pixels
        # Other formats cannot be decoded at a lower resolution, so they are resized here.
        # Adding 0.5 rounds to the nearest level; no value is below 0 or above 255.
        return tf.cast(_resize(pixels, window, cut, size) + 0.5, tf.uint8)

    def decode_group(
        index: "tf.Tensor", window: "tf.Tensor", cut: "tf.Tensor"
    ) -> "list[tf.Tensor]":
        members = zip(read(index), tf.unstack(window), tf.unstack(cut), strict=True)
        return [decode(*member) for member in members]

    signature = [
        tf.TensorSpec([count], tf.int64),
        tf.TensorSpec([count, 4], tf.float32),
        tf.TensorSpec([count, 4], tf.int32),
    ]
    return tf.function(without_autograph(decode_group), signature).get_concrete_function()


def _lookup(values: np.ndarray) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    tf = import_tensorflow()
    with tf.device("CPU"):
        table = tf.constant(values)
    return lambda row: tf.gather(table, row)


def reader(images: EncodedImages) -> Read:
    """Makes a function from indices [G] to the encoded bytes of each image."""
    tf = import_tensorflow()
    path_of, file_of, offset_of = map(_lookup, (images.files, images.file_id, images.offset))

    def paths(index: "tf.Tensor") -> list["tf.Tensor"]:
        return tf.unstack(path_of(file_of(index)))

    feature = images.feature
    if not feature:
        return lambda index: [tf.io.read_file(path) for path in paths(index)]
    features = {feature: tf.io.FixedLenFeature([], tf.string)}

    def read_record(path: "tf.Tensor", offset: "tf.Tensor") -> "tf.Tensor":
        # This is TensorFlow's only operation that reads a record at a byte offset.
        dataset = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset]
        )
        records = tf.data.experimental.from_variant(dataset, tf.TensorSpec([], tf.string))
        record = records.take(1).get_single_element()
        return tf.io.parse_single_example(record, features)[feature]

    return lambda index: list(map(read_record, paths(index), tf.unstack(offset_of(index))))


def _reader_of(images: np.ndarray | EncodedImages) -> Read:
    """Makes a function from indices [G] to encoded bytes, or to whole images of an array."""
    if isinstance(images, EncodedImages):
        return reader(images)
    tf, image_of = import_tensorflow(), _lookup(images)
    return lambda index: [image_of(one) for one in tf.unstack(index)]


def _decode_cut(encoded: bool, kind: int, source: "tf.Tensor", cut: "tf.Tensor") -> "tf.Tensor":
    """Decodes a part of one image; see `DecodePlan` for the kinds."""
    tf = import_tensorflow()
    if kind:
        return tf.raw_ops.DecodeAndCropJpeg(
            contents=source,
            crop_window=cut,
            channels=3,
            ratio=_RATIOS[kind - 1],
            dct_method=_DCT,
        )
    whole = source
    if encoded:
        whole = tf.io.decode_png(source, channels=3)
    return whole[cut[0] : cut[0] + cut[2], cut[1] : cut[1] + cut[3]]


def decode_whole_image(contents: "tf.Tensor") -> "tf.Tensor":
    """Decodes a JPEG or PNG to uint8 [H, W, 3], without its EXIF orientation."""
    tf = import_tensorflow()
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method=_DCT),
        lambda: tf.io.decode_png(contents, channels=3),
    )


def find_damaged(images: EncodedImages, index: np.ndarray) -> list[str]:
    """The names of those images (index: int [G]) that no longer decode to their indexed size."""
    tf, contents_of, found = import_tensorflow(), reader(images), []
    for i in np.unique(index):
        try:
            pixels = decode_whole_image(contents_of(tf.constant([i]))[0])
            if tuple(pixels.shape[:2]) == tuple(images.stored_sizes[i]):
                continue
        except tf.errors.OpError:
            pass
        found.append(images.name(i))
    return found


def _resize(pixels: "tf.Tensor", window: "tf.Tensor", cut: "tf.Tensor", size: int) -> "tf.Tensor":
    """Resizes a window, in fractions of pixels, out of the decoded part of an image."""
    tf = import_tensorflow()
    scale = size / window[2:]
    resized = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=[size, size],
        scale=scale,
        translation=(tf.cast(cut[:2], tf.float32) - window[:2]) * scale,
        kernel_type="triangle",
        antialias=True,
    )
    return resized[0]


def without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that AutoGraph need not convert, since it only calls TensorFlow."""
    return import_tensorflow().autograph.experimental.do_not_convert(function)
