"""Host batches of decoded and resized images, with TensorFlow or Pillow, ahead of the step.

`augmentation.py` draws all random numbers in advance, so that each image is a pure function of
its batch indices. Decoded images become batches in `collate.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imta_jax.config import DataConfig
from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.pipeline import tf_pipeline
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.collate import collate_batches, prefetch
from imta_jax.data.pipeline.decode_plan import plan_decoding
from imta_jax.data.pipeline.decoder import PILLOW, choose_decoder
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.pillow_decoding import decode_file, decoded_groups, on_threads
from imta_jax.errors import InputError
from imta_jax.runtime.environment import memory_bytes, usable_cores

# Largest image that becomes part of an array; the channel statistics take 24 bytes per value.
_MAX_ARRAY_PIXELS = 4096 * 4096
_MAX_BATCHES_AHEAD = 16


@dataclass(frozen=True)
class HostPipeline:
    """Options of the pipelines that decode images.

    Attributes:
      memory_limit_gb: memory limit of their buffers, in 10^9 bytes.
      service: address of a tf.data service's dispatcher, "grpc://HOST:PORT"; "" decodes here.
        Pillow always decodes here.
    """

    memory_limit_gb: float = 4.0
    service: str = ""

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
    decoder: str | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decodes crops of any size and resizes them; yields images and example indices.

    Args:
      images: encoded images, or an array.
      indices: examples and their windows.
      batch_size: examples per batch.
      host: options of the pipeline.
      size: pixels per side of the result.
      exact: if True (evaluation), an antialiased triangle filter at fractions of pixels, as
        Pillow's bilinear resize. Otherwise (training), bilinear interpolation of windows in whole
        pixels, which is several times as fast.
      decoder: one of `DECODERS`; None for the decoder of the images.
    """
    plan = plan_decoding(images, indices, size, exact)
    encoded = isinstance(images, EncodedImages)
    decoder = decoder or (images.decoder if encoded else choose_decoder("auto"))
    if decoder == PILLOW:
        decoded = decoded_groups(
            images,
            plan,
            indices,
            size=size,
            exact=exact,
            memory_limit_gb=host.memory_limit_gb,
        )
    else:
        decoded = tf_pipeline.decoded_groups(
            images, plan, indices, batch_size, host, size=size, exact=exact
        )
    channels = 3 if encoded else images.shape[-1]
    shape = (batch_size, size, size, channels)
    batches = collate_batches(decoded, indices, shape)
    return prefetch(batches, host.batches_ahead(math.prod(shape)))


def decode_all(images: EncodedImages) -> np.ndarray:
    """Decodes images of one size completely and in order, uint8 [N, H, W, 3].

    Raises:
      InputError: an image is too large, or the array is larger than the memory of this machine.
      StorageError: an image cannot be decoded.
    """
    _check_memory(images)
    if images.decoder != PILLOW:
        return tf_pipeline.decode_all(images)
    height, width = images.sizes[0].tolist()
    decoded = np.empty((len(images), height, width, 3), np.uint8)

    def decode(i: int) -> None:
        decoded[i] = apply_orientation(decode_file(images, i), int(images.orientation[i]))

    for _ in on_threads(decode, range(len(images)), usable_cores()):
        pass
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
