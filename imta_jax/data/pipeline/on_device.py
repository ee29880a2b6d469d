"""Small datasets on the device: batches are cut there, inside the compiled step.

All images lie on every device as uint8; per epoch only the plan (`augmentation.py`) travels, a few
bytes an image. The batches are those of the host's pipelines, bit for bit.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imta_jax.data.dataset import Split
from imta_jax.data.pipeline.augmentation import epoch_plan
from imta_jax.data.pipeline.batch_indices import SINGLE_PROCESS, Shard, shard_of, train_indices
from imta_jax.data.pipeline.batches import steps_per_epoch
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing
from imta_jax.distributed import place_once
from imta_jax.types import Batch


class OnDeviceSplit(NamedTuple):
    """A split on the devices, each of which holds all of it; a JAX pytree.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
    """

    images: jax.Array
    labels: jax.Array


class OnDeviceIndices(NamedTuple):
    """The rows of some batches, for one dispatch; a JAX pytree.

    Attributes:
      index: int32 [S, B], example of each row of S batches.
      corner: int16 [S, B, 2], first row and column of what is shown; below 0 in the padding.
      flip: bool [S, B].
      steps: int32, how many of the S batches are to be used; the others only fill up.
    """

    index: np.ndarray | jax.Array
    corner: np.ndarray | jax.Array
    flip: np.ndarray | jax.Array
    steps: np.ndarray | jax.Array


def supports_on_device(split: Split, preprocessing: Preprocessing) -> bool:
    """Whether the images are arrays that a device can cut windows out of."""
    return isinstance(preprocessing, PaddedCrop) and not isinstance(split.images, EncodedImages)


def fits_device(split: Split, share: float, device: jax.Device) -> bool:
    """Whether the images take no more than a share (0 to 1) of a device's memory.

    A processor's memory is that of the machine.
    """
    return split.images.nbytes <= share * _memory_bytes(device)


def _memory_bytes(device: jax.Device) -> float:
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device that does not tell
        limit = None
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return limit or 0


def copy_to_devices(split: Split, mesh: Mesh) -> OnDeviceSplit:
    """Copies a split to every device of the mesh."""
    return place_once(OnDeviceSplit(split.images, split.labels), mesh)


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
    """The rows of one epoch's full batches, `steps_per_dispatch` batches at a time.

    Args:
      split: the same images as on the device.
      preprocessing: what is shown of each.
      batch_size: examples per batch, over all devices and processes.
      seed: of the run.
      epoch: from 0.
      start_step: batches of this epoch that were already seen.
      steps_per_dispatch: S; every item has this many, so that the step is compiled once.
      shard: this process's part of every batch.
    """
    total = steps_per_epoch(len(split), batch_size)
    plan = epoch_plan(preprocessing, split.sizes, seed=seed, epoch=epoch)
    for first in range(start_step, total, steps_per_dispatch):
        last = min(first + steps_per_dispatch, total)
        rows = train_indices(plan, batch_size=batch_size, start_step=first, steps=last)
        index, window, flip = shard_of(rows, batch_size, shard)
        filled = [(0, steps_per_dispatch - (last - first)), (0, 0)]

        def per_batch(values: np.ndarray, filled: list = filled, steps: int = last - first):
            batches = values.reshape(steps, -1, *values.shape[1:])
            return np.pad(batches, filled + [(0, 0)] * (batches.ndim - 2))

        yield OnDeviceIndices(
            per_batch(index.astype(np.int32)),
            per_batch(window[:, :2].astype(np.int16)),
            per_batch(flip),
            np.int32(last - first),
        )


def on_device_batch(split: OnDeviceSplit, index: jax.Array, corner: jax.Array, flip: jax.Array):
    """Cuts one batch on the device; `augmentation.crop` in JAX's operations.

    Args:
      split: on the device.
      index: int32 [B].
      corner: int16 [B, 2].
      flip: bool [B].

    Returns:
      The `Batch`, without padding rows.
    """
    images = split.images[index]
    _, height, width, _ = images.shape
    rows = corner[:, :1] + jnp.arange(height)[None]  # [B, H]
    columns = corner[:, 1:] + jnp.arange(width)[None]  # [B, W]
    columns = jnp.where(flip[:, None], columns[:, ::-1], columns)
    cut = _take(_take(images, rows, axis=1), columns, axis=2)
    return Batch(cut, split.labels[index], jnp.ones(len(index), bool), index)


def _take(images: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Rows or columns of each image at its own places [B, L], black where there are none."""
    shape = [1] * images.ndim
    shape[0], shape[axis] = places.shape
    inside = ((places >= 0) & (places < images.shape[axis])).reshape(shape)
    taken = jnp.take_along_axis(images, places.reshape(shape), axis=axis, mode="clip")
    return jnp.where(inside, taken, jnp.zeros((), images.dtype))
