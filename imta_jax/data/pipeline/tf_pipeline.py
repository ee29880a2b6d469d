"""The tf.data pipeline: reads and decodes images on all cores, ahead of the step.

All random numbers are drawn before (`augmentation.py`), so that each element is a pure function of
its batch indices. Decoding is a TensorFlow graph without Python, so that a tf.data service can run
it on other machines. `collate.py` turns decoded images into batches.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from imta_jax.config import DataConfig
from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import (
    DecodeGroups,
    collate_batches,
    decode_order,
    group_for_decoding,
    prefetch,
)
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.tf_decoding import (
    DecodePlan,
    decode_whole_image,
    find_damaged,
    make_decoder,
    max_group_bytes,
    plan_decoding,
    reader,
    without_autograph,
)
from imta_jax.data.pipeline.tf_execution import from_service, on_this_host, reading_errors
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import InputError, StorageError
from imta_jax.runtime.environment import memory_bytes, usable_cores

if TYPE_CHECKING:
    import tensorflow as tf

T = TypeVar("T")

_DECODED_PER_CHUNK = 1024
_CHUNK_BYTES = 64_000_000
# Of an image that becomes part of an array. The channel statistics take 24 bytes per value.
_MAX_ARRAY_PIXELS = 4096 * 4096
_MAX_BATCHES_AHEAD = 16


@dataclass(frozen=True)
class HostPipeline:
    """Options of the tf.data pipeline.

    Attributes:
      memory_limit_gb: memory limit of its buffers, in 10^9 bytes.
      service: address of a tf.data service's dispatcher, "grpc://HOST:PORT"; "" decodes here.
    """

    memory_limit_gb: float = 4.0
    service: str = ""

    def __post_init__(self) -> None:
        if not self.memory_limit_gb > 0:
            raise InputError(
                f"config.data.memory_limit_gb is {self.memory_limit_gb}, expected above 0"
            )
        if self.service and "://" not in self.service:
            raise InputError(
                f"config.data.service is {self.service!r}, expected e.g. grpc://HOST:5000"
            )

    @classmethod
    def from_config(cls, config: DataConfig) -> "HostPipeline":
        """The options in `config.data`."""
        return cls(config.memory_limit_gb, config.service)

    def batches_ahead(self, bytes_per_batch: int) -> int:
        """Number of finished batches that may wait, at least 1."""
        # Five more batches of memory: two being filled with their sources, and the step's own.
        ahead = self.memory_limit_gb * 1e9 / 2 // bytes_per_batch - 5
        return int(np.clip(ahead, 1, _MAX_BATCHES_AHEAD))

    def parallel_groups(self, group_bytes: int) -> int:
        """Number of groups of images to decode in parallel, at least 1."""
        # Batches take half of the limit, and images that are being resized a quarter.
        return int(np.clip(self.memory_limit_gb * 1e9 / 4 // group_bytes, 1, usable_cores()))


def resized_batches(
    images: np.ndarray | EncodedImages,
    indices: BatchIndices,
    batch_size: int,
    host: HostPipeline,
    *,
    size: int,
    exact: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decodes crops of any size and resizes them; yields images and example indices.

    Args:
      images: encoded images, or an array.
      indices: examples and their windows.
      batch_size: examples per batch.
      host: options of the pipeline.
      size: pixels per side of the result.
      exact: If True (evaluation), an antialiased triangle filter at fractions of pixels, as
        Pillow's bilinear resize. Otherwise (training), bilinear interpolation of windows in whole
        pixels, which is several times as fast.
    """
    plan = plan_decoding(images, indices, size, exact)
    every = group_for_decoding(indices.index, plan.kind, batch_size)
    running = [_decoded(images, plan, groups, host, size, exact) for groups in every]
    decoded = (next(running[turn]) for turn in decode_order(every, batch_size))
    channels = 3 if isinstance(images, EncodedImages) else images.shape[-1]
    shape = (batch_size, size, size, channels)
    batches = collate_batches(decoded, indices, shape)
    return prefetch(batches, host.batches_ahead(math.prod(shape)))


def _decoded(
    images: np.ndarray | EncodedImages,
    plan: DecodePlan,
    groups: DecodeGroups,
    host: HostPipeline,
    size: int,
    exact: bool,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Decodes groups of one kind; yields positions [G] and decoded images, group after group."""
    tf = import_tensorflow()
    decode = make_decoder(images, groups.kind, groups.places.shape[1], size, exact)
    number = np.arange(len(groups.places))
    inputs = (number, *(values[groups.places] for values in (plan.index, plan.window, plan.cut)))
    dataset = tf.data.Dataset.from_tensor_slices(inputs).map(
        without_autograph(lambda number, *rest: (number, *decode(*rest))),
        num_parallel_calls=host.parallel_groups(max_group_bytes(images, plan, groups)),
    )
    if host.service:
        elements = from_service(dataset, len(groups.places), host.service)
    else:
        # No buffer of decoded images: those that are resized at once are still in the cache.
        elements = _naming_damaged(on_this_host(dataset), images, plan.index[groups.places])
    for number, *pixels in elements:
        places = groups.places[number]
        first = plan.margin[places]
        columns = zip(pixels, first, first + plan.width[places], strict=True)
        cut = (image[:, start:end] for image, start, end in columns)
        oriented = zip(cut, plan.orientation[places].tolist(), strict=True)
        yield places, [_oriented(image, orientation) for image, orientation in oriented]


def _oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return image
    return np.ascontiguousarray(apply_orientation(image, orientation))


def _naming_damaged(
    elements: Iterator[T], images: np.ndarray | EncodedImages, index: np.ndarray
) -> Iterator[T]:
    """Yields the same elements; adds the names of damaged images to an OSError.

    Args:
      elements: decoded groups in order.
      images: the images they are decoded from.
      index: int64 [K, G], examples of each group.
    """
    done = 0
    try:
        for element in elements:
            yield element
            done += 1
    except OSError as error:
        is_encoded = isinstance(images, EncodedImages)
        names = find_damaged(images, index[done]) if is_encoded and done < len(index) else []
        raise StorageError("\n  ".join([str(error), *names])) from error


def decode_all(images: EncodedImages) -> np.ndarray:
    """Decodes images of one size completely and in order, uint8 [N, H, W, 3].

    Raises:
      InputError: an image is too large, or the array is larger than the memory of this machine.
    """
    tf = import_tensorflow()
    contents_of = reader(images)
    height, width = images.sizes[0].tolist()
    _check_memory(images)
    sizes = tf.constant(images.stored_sizes)

    def decode(i: "tf.Tensor") -> "tf.Tensor":
        image = decode_whole_image(contents_of(i[None])[0])
        with tf.control_dependencies([tf.assert_equal(tf.shape(image)[:2], sizes[i])]):
            return tf.ensure_shape(image, [None, None, 3])

    dataset = tf.data.Dataset.range(len(images))
    dataset = dataset.map(without_autograph(decode), num_parallel_calls=tf.data.AUTOTUNE)
    decoded, start = np.empty((len(images), height, width, 3), np.uint8), 0
    # Stored images differ in size if only some of them are transposed.
    same_size = bool((images.stored_sizes == images.sizes).all())
    per_chunk = int(np.clip(_CHUNK_BYTES // decoded[0].nbytes, 1, _DECODED_PER_CHUNK))
    with reading_errors():
        for chunk in dataset.batch(per_chunk if same_size else 1).as_numpy_iterator():
            for i, image in enumerate(chunk, start):
                decoded[i] = apply_orientation(image, images.orientation[i])
            start += len(chunk)
    return decoded


def _check_memory(images: EncodedImages) -> None:
    """Rejects images whose pixels do not fit in memory, before any is decoded."""
    (height, width), available = images.sizes[0].tolist(), memory_bytes()
    needed, reason = 3 * height * width * len(images), ""
    if height * width > _MAX_ARRAY_PIXELS:
        reason = f"at most {_MAX_ARRAY_PIXELS:,} pixels are trained on without a resize"
    elif needed > available:
        reason = (
            f"as an array, the {len(images)} images of this size need {needed / 1e9:.1f} GB of"
            f" memory, and {available / 1e9:.1f} GB are available"
        )
    if reason:
        raise InputError(
            f"{images.name(0)} has {height} x {width} pixels (height x width); {reason}. Set"
            " config.data.preprocessing=random_area_crop (see configs/imagenet.py), which resizes"
            " images to config.data.image_size, or store smaller images"
        )
