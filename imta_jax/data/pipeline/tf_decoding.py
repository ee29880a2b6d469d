"""Images, from where they lie to the pixels of a window, as TensorFlow operations.

A window is cut out while the JPEG is decoded, so that only the needed part is, and a window of many
times the wanted pixels is decoded into a half, a quarter or an eighth of them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import DecodeGroups
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

# JPEG can be decoded into 1/1, 1/2, 1/4 or 1/8 of the pixels, the last three for less work.
_RATIOS = (1, 2, 4, 8)
# Columns that a JPEG's blocks take, however its colours are sampled (4:1:1 aside). What is cut out
# from such a column on is decoded in place; otherwise TensorFlow copies row after row, 4% of all.
_BLOCK = 16
# As every other decoder does it; TensorFlow's default is off by some levels and no faster.
_DCT = "INTEGER_ACCURATE"

Read = Callable[["tf.Tensor"], "list[tf.Tensor]"]
Decoder = Callable[..., "list[tf.Tensor]"]
_decoders: WeakKeyDictionary[EncodedImages, dict[Any, Decoder]] = WeakKeyDictionary()


class DecodePlan(NamedTuple):
    """What is decoded of each of R rows.

    Attributes:
      index: int64 [R], the example; 0 for padding.
      window: float32 [R, 4], what is shown, in pixels of the image.
      cut: int32 [R, 4], the part that is decoded, in pixels of what the image is decoded into.
      kind: int32 [R], how: 0 whole, or 1 + the place of the ratio in `_RATIOS`.
      margin: int32 [R], columns before the window's in the picture that `make_decoder` makes.
      width: int32 [R], and those of the window.
    """

    index: np.ndarray
    window: np.ndarray
    cut: np.ndarray
    kind: np.ndarray
    margin: np.ndarray
    width: np.ndarray


def plan_decoding(
    images: np.ndarray | EncodedImages, rows: BatchIndices, size: int, exact: bool
) -> DecodePlan:
    """Plans how rows are decoded; for the arguments see `tf_pipeline.resized_batches`."""
    index, encoded = np.maximum(rows.index, 0), isinstance(images, EncodedImages)
    sizes = images.sizes[index] if encoded else np.array([images.shape[1:3]])
    sizes = np.broadcast_to(sizes, (len(index), 2))
    part = _whole_pixels(rows.window, sizes, size, exact)
    kind = np.zeros(len(index), np.int32)
    if encoded:
        # The smallest picture that has no fewer pixels than what is asked for.
        fewest = part[:, 2:].min(axis=1, initial=1 << 30)
        ratio = np.zeros(len(fewest)) if exact else np.log2(np.maximum(fewest / size, 1))
        as_jpeg = 1 + np.minimum(np.floor(ratio), len(_RATIOS) - 1).astype(np.int32)
        kind = np.where(images.is_jpeg[index], as_jpeg, kind)
    # Both edges to the nearest pixel of the smaller picture.
    ratio = np.array([1, *_RATIOS], np.int32)[kind][:, None]
    first = (part[:, :2] + ratio // 2) // ratio
    last = np.maximum((part[:, :2] + part[:, 2:] + ratio // 2) // ratio, first + 1)
    before, after = _beside(first[:, 1] * ratio[:, 0], sizes[:, 1] - last[:, 1], kind)
    before //= ratio[:, 0]
    width = last[:, 1] - first[:, 1]
    first[:, 1] -= before
    last[:, 1] += after
    cut = np.concatenate([first, last - first], axis=1)
    as_window = (kind == 0) | exact  # resized in TensorFlow's graph, which leaves the others out
    margin, width = np.where(as_window, 0, before), np.where(as_window, size, width)
    return DecodePlan(index, rows.window, cut, kind, margin, width)


def _beside(start: np.ndarray, left: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many columns before and after a window are decoded, too.

    At full size one at least to either side, as colours that are stored for two columns at a time
    are interpolated between neighbours.

    Args:
      start: int [R], the window's first column, in pixels of the image.
      left: int [R], columns after its last one.
      kind: see `DecodePlan`.
    """
    before, full = start % _BLOCK, kind == 1
    before = np.where(full & (before == 0) & (start > 0), _BLOCK, before)
    return np.where(kind > 0, before, 0), np.where(full, np.minimum(left, 1), 0)


def max_group_bytes(
    images: np.ndarray | EncodedImages, decoding: DecodePlan, groups: DecodeGroups
) -> int:
    """The most memory that the pixels of a group take, before they are resized."""
    if isinstance(images, np.ndarray):
        return int(images[0].nbytes * groups.places.shape[1])
    whole = images.sizes[decoding.index]  # what is no JPEG is decoded whole
    decoded = (decoding.cut[:, 2:] if groups.kind else whole).astype(np.int64)
    return int(3 * decoded[groups.places].prod(axis=-1).sum(axis=1).max())


def make_decoder(
    images: np.ndarray | EncodedImages, kind: int, count: int, size: int, exact: bool
) -> Decoder:
    """Maps index, window and cut of `count` rows to their pictures, uint8 [h, w, C] each.

    Made once for encoded images, not in each epoch: TensorFlow takes up to 50 ms.

    Args:
      images: encoded, or an array.
      kind: of the rows; for this and what is mapped see `DecodePlan`.
      count: of rows.
      size: pixels per side that are wanted.
      exact: see `tf_pipeline.resized_batches`; if so, pictures are of that size. Otherwise windows
        of JPEGs are not resized yet.
    """
    if isinstance(images, np.ndarray):
        return _new_decoder(images, kind, count, size, exact)
    known, key = _decoders.setdefault(images, {}), (kind, count, size, exact)
    if key not in known:
        known[key] = _new_decoder(images, *key)
    return known[key]


def _new_decoder(
    images: np.ndarray | EncodedImages, kind: int, count: int, size: int, exact: bool
) -> Decoder:
    # Nothing that stays may refer to the images: they are let go when their dataset is.
    tf, opened, encoded = import_tensorflow(), _opener(images), isinstance(images, EncodedImages)

    def picture(source: "tf.Tensor", window: "tf.Tensor", cut: "tf.Tensor") -> "tf.Tensor":
        pixels = _pixels(encoded, kind, source, cut)
        if kind and not exact:
            return pixels
        # What is no JPEG was not decoded into fewer pixels, and may be many times too large.
        # To the nearest: none is below 0 or above 255.
        return tf.cast(_resize(pixels, window, cut, size) + 0.5, tf.uint8)

    def group(index: "tf.Tensor", window: "tf.Tensor", cut: "tf.Tensor") -> "list[tf.Tensor]":
        members = zip(opened(index), tf.unstack(window), tf.unstack(cut), strict=True)
        return [picture(*member) for member in members]

    signature = [
        tf.TensorSpec([count], tf.int64),
        tf.TensorSpec([count, 4], tf.float32),
        tf.TensorSpec([count, 4], tf.int32),
    ]
    return tf.function(without_autograph(group), signature).get_concrete_function()


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


def reader(images: EncodedImages) -> Read:
    """Maps indices [G] to the bytes of their files, or of the images in their records, a list."""
    tf = import_tensorflow()
    path_of, file_of, offset_of = map(_lookup, (images.files, images.file_id, images.offset))

    def paths(index: "tf.Tensor") -> list["tf.Tensor"]:
        return tf.unstack(path_of(file_of(index)))

    feature = images.feature
    if not feature:
        return lambda index: [tf.io.read_file(path) for path in paths(index)]
    wanted = {feature: tf.io.FixedLenFeature([], tf.string)}

    def record(path: "tf.Tensor", offset: "tf.Tensor") -> "tf.Tensor":
        # One record, wherever it lies: the only operation of TensorFlow that starts at an offset.
        at = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset]
        )
        records = tf.data.experimental.from_variant(at, tf.TensorSpec([], tf.string))
        found = records.take(1).get_single_element()
        return tf.io.parse_single_example(found, wanted)[feature]

    return lambda index: list(map(record, paths(index), tf.unstack(offset_of(index))))


def _opener(images: np.ndarray | EncodedImages) -> Read:
    """Maps indices [G] to what `_pixels` takes: compressed images, or whole ones of an array."""
    if isinstance(images, EncodedImages):
        return reader(images)
    tf, image_of = import_tensorflow(), _lookup(images)
    return lambda index: [image_of(one) for one in tf.unstack(index)]


def _pixels(encoded: bool, kind: int, source: "tf.Tensor", cut: "tf.Tensor") -> "tf.Tensor":
    """The part of one image that is to be decoded; for kinds see `DecodePlan`."""
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
        whole = tf.io.decode_image(source, channels=3, expand_animations=False)
    return whole[cut[0] : cut[0] + cut[2], cut[1] : cut[1] + cut[3]]


def decode_whole_image(contents: "tf.Tensor") -> "tf.Tensor":
    """A JPEG, PNG, GIF (its first picture) or BMP, uint8 [H, W, 3]."""
    tf = import_tensorflow()
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method=_DCT),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )


def find_damaged(images: EncodedImages, index: np.ndarray) -> list[str]:
    """Which of some images (int [G]) cannot be opened now as they were indexed, by name."""
    tf, contents_of, found = import_tensorflow(), reader(images), []
    for i in np.unique(index):
        try:
            pixels = decode_whole_image(contents_of(tf.constant([i]))[0])
            if tuple(pixels.shape[:2]) == tuple(images.sizes[i]):
                continue
        except tf.errors.OpError:
            pass
        found.append(images.name(i))
    return found


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


def without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain TensorFlow operations: nothing for AutoGraph to rewrite."""
    return import_tensorflow().autograph.experimental.do_not_convert(function)
