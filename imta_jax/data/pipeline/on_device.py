"""On-device data: small datasets stay on the device, and the compiled step crops the batches.

Every device holds all images as uint8. Per epoch only the batch indices are transferred, a few
bytes per image. The batches are bit-identical to those of the host pipelines.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Int16, Int32, UInt8

from imta_jax.data.pipeline.augmentation import epoch_plan
from imta_jax.data.pipeline.batch_indices import SINGLE_PROCESS, Shard, shard_of, train_indices
from imta_jax.data.pipeline.batches import steps_per_epoch
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing
from imta_jax.data.split import Split
from imta_jax.distributed import replicate_host
from imta_jax.types import Batch

_LANES = 128  # Numbers in a row of a TPU's tiles.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnDeviceSplit:
    """A split that is replicated on every device; a JAX pytree.

    An image is one row. TPUs store arrays in tiles of 8 x 128 numbers, into which H, W or C would
    be padded, and XLA would copy all images into another layout in every dispatch.

    Attributes:
      images: N rows of H*W*C pixels.
      labels: class of each image, from 0.
      image_shape: (H, W, C).
    """

    images: Any
    labels: Any
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_host(cls, images: Any, labels: Any) -> "OnDeviceSplit":
        """A split from images [N, H, W, C]."""
        height, width, channels = images.shape[1:]
        return cls(images.reshape(len(images), -1), labels, (height, width, channels))


class OnDeviceIndices(NamedTuple):
    """The indices of S batches of B examples, for one dispatch; a JAX pytree.

    Attributes:
      index: examples of each batch.
      corner: top and left of each crop; negative in the zero padding.
      flip: whether a crop is mirrored horizontally.
      steps: number of batches to use; the others pad the last dispatch of an epoch.
    """

    index: Int32[Array | np.ndarray, "S B"]
    corner: Int16[Array | np.ndarray, "S B 2"]
    flip: Bool[Array | np.ndarray, "S B"]
    steps: Int32[Array | np.ndarray, ""]


def supports_on_device(split: Split, preprocessing: Preprocessing) -> bool:
    """Whether the images are arrays that are cropped but not resized."""
    return isinstance(preprocessing, PaddedCrop) and not isinstance(split.images, EncodedImages)


def fits_device(
    split: Split,
    memory_share: float,
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]
) -> bool:
    """Whether the images take at most the fraction `memory_share` of a device's memory.

    The memory of a CPU device is the host's memory.
    """
    size = stored_bytes(len(split), split.array.shape[1:])
    return size <= memory_share * _memory_bytes(device)


def stored_bytes(examples: int, image_shape: Sequence[int]) -> int:
    """Bytes of images on a device; a TPU pads each image to a multiple of 128."""
    return examples * -(-math.prod(image_shape) // _LANES) * _LANES


def _memory_bytes(
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]
) -> int:
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # the device does not report its memory
        limit = None
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):  # Not on Windows.
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return limit or 0


def copy_to_devices(split: Split, mesh: Mesh) -> OnDeviceSplit:
    """Copies a split to every device of the mesh."""
    return replicate_host(OnDeviceSplit.from_host(split.array, split.labels), mesh)


def on_device_indices(
    split: Split,
    preprocessing: PaddedCrop,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    steps_per_dispatch: int,
    shard: Shard = SINGLE_PROCESS,
) -> Iterator[OnDeviceIndices]:
    """The indices of one epoch's full batches, `steps_per_dispatch` batches at a time.

    Args:
      split: the images that are on the device.
      preprocessing: crop and augmentation.
      batch_size: global batch size, over all devices and processes.
      seed: seed of the run.
      epoch: number of the epoch, from 0.
      start_step: first batch of the epoch.
      steps_per_dispatch: S; the last dispatch is padded to S batches to avoid a recompilation.
      shard: part of every batch of this process.
    """
    total = steps_per_epoch(len(split), batch_size)
    plan = epoch_plan(preprocessing, split.sizes, seed=seed, epoch=epoch)
    for first in range(start_step, total, steps_per_dispatch):
        last = min(first + steps_per_dispatch, total)
        indices = train_indices(plan, batch_size=batch_size, start_step=first, steps=last)
        index, window, flip = shard_of(indices, batch_size, shard)
        yield OnDeviceIndices(
            _stack(index.astype(np.int32), last - first, steps_per_dispatch),
            _stack(window[:, :2].astype(np.int16), last - first, steps_per_dispatch),
            _stack(flip, last - first, steps_per_dispatch),
            np.array(last - first, np.int32),
        )


def _stack(values: np.ndarray, steps: int, padded_steps: int) -> np.ndarray:
    """Splits [steps * B, ...] into batches and pads them with zeros: [padded_steps, B, ...]."""
    batches = values.reshape(steps, -1, *values.shape[1:])
    return np.pad(batches, [(0, padded_steps - steps)] + [(0, 0)] * (batches.ndim - 1))


def on_device_batch(
    split: OnDeviceSplit,
    index: Int32[Array, " B"],
    corner: Int16[Array, "B 2"],
    flip: Bool[Array, " B"],
) -> Batch:
    """Crops one batch on the device; the same as `augmentation.crop`, in JAX.

    Args:
      split: images and labels on the device.
      index: examples of the batch.
      corner: top and left of each crop.
      flip: whether a crop is mirrored horizontally.

    Returns:
      The batch, without padding.
    """
    height, width, _ = split.image_shape
    images = split.images[index].reshape(-1, *split.image_shape)
    rows = corner[:, :1] + jnp.arange(height)[None]  # [B, H]
    columns = corner[:, 1:] + jnp.arange(width)[None]  # [B, W]
    columns = jnp.where(flip[:, None], columns[:, ::-1], columns)
    cropped = _take_or_zero(_take_or_zero(images, rows, axis=1), columns, axis=2)
    return Batch(cropped, split.labels[index], jnp.ones(len(index), bool), index)


def _take_or_zero(
    images: UInt8[Array, "B _ _ C"], positions: Int[Array, "B L"], axis: int
) -> UInt8[Array, "B _ _ C"]:
    """Takes rows (axis 1) or columns (axis 2) of each image; 0 where positions are outside."""
    shape = [1] * images.ndim
    shape[0], shape[axis] = positions.shape
    inside = ((positions >= 0) & (positions < images.shape[axis])).reshape(shape)
    taken = jnp.take_along_axis(images, positions.reshape(shape), axis=axis, mode="clip")
    return jnp.where(inside, taken, jnp.zeros((), images.dtype))
