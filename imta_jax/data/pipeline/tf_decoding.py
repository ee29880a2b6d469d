"""Decoding of encoded images and arrays to the pixels of a window, as TensorFlow operations.

`decode_plan` says which pixels are decoded, at which resolution.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int

from imta_jax.data.pipeline.changed_images import describe_change
from imta_jax.data.pipeline.decode_plan import RATIOS
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.tensorflow_import import import_tensorflow, short_message
from imta_jax.errors import StorageError

if TYPE_CHECKING:
    import tensorflow as tf

# The method of other decoders. TensorFlow's default is off by some levels and not faster.
_DCT = "INTEGER_ACCURATE"

Read = Callable[["tf.Tensor"], "list[tf.Tensor]"]
Decoder = Callable[..., "list[tf.Tensor]"]
_decoders: WeakKeyDictionary[EncodedImages, dict[Any, Decoder]] = WeakKeyDictionary()


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
      exact: see `host_pipeline.resized_batches`. If True, the result has that size. Otherwise crops
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
    return lambda index: [image_of(i) for i in tf.unstack(index)]


def _decode_cut(encoded: bool, kind: int, source: "tf.Tensor", cut: "tf.Tensor") -> "tf.Tensor":
    """Decodes a part of one image; see `DecodePlan` for the kinds."""
    tf = import_tensorflow()
    if kind:
        return tf.raw_ops.DecodeAndCropJpeg(
            contents=source,
            crop_window=cut,
            channels=3,
            ratio=RATIOS[kind - 1],
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


def find_changed(images: EncodedImages, index: Int[np.ndarray, " G"]) -> list[str]:
    """Describes those of the images at `index` that no longer fit their stored index."""
    tf, contents_of = import_tensorflow(), reader(images)

    def read(_: EncodedImages, i: int) -> bytes:
        try:
            contents: Any = contents_of(tf.constant([i], tf.int64))[0]
        except tf.errors.OpError as error:
            raise StorageError(short_message(error)) from error
        return contents.numpy()

    changes = [describe_change(images, i, read) for i in np.unique(index).tolist()]
    return [change for change in changes if change]


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
