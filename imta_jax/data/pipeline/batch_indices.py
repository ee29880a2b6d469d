"""Batch indices: the example, the crop and the flip of each position of a batch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from imta_jax.data.pipeline.augmentation import EpochPlan
from imta_jax.errors import InputError

PADDING_INDEX = -1


class Shard(NamedTuple):
    """The contiguous part of every batch that one process loads.

    Attributes:
      index: index of the process, from 0.
      count: number of processes.
    """

    index: int = 0
    count: int = 1


SINGLE_PROCESS = Shard()


class BatchIndices(NamedTuple):
    """The R positions of several batches, batch after batch.

    Attributes:
      index: example of each position; -1 for padding of the last batch.
      window: top, left, height and width of the crop, in pixels of the image.
      flip: whether the crop is mirrored horizontally.
    """

    index: Int64[np.ndarray, " R"]
    window: Float32[np.ndarray, "R 4"]
    flip: Bool[np.ndarray, " R"]


def train_indices(plan: EpochPlan, *, batch_size: int, start_step: int, steps: int) -> BatchIndices:
    """The indices of an epoch's training batches from `start_step` up to `steps`."""
    index = plan.order[start_step * batch_size : steps * batch_size]
    return BatchIndices(index, plan.window[index], plan.flip[index])


def eval_indices(windows: Float32[np.ndarray, "N 4"], batch_size: int) -> BatchIndices:
    """The indices of all examples in order, without flips; the last batch is padded."""
    count = len(windows)
    padding = -count % batch_size
    index = np.concatenate([np.arange(count), np.full(padding, PADDING_INDEX)])
    window = np.concatenate([windows, np.zeros((padding, 4), np.float32)])
    return BatchIndices(index, window, np.zeros(len(index), bool))


def shard_of(indices: BatchIndices, batch_size: int, shard: Shard) -> BatchIndices:
    """The positions of every batch that one process loads, `batch_size / count` per batch.

    The shards of all processes, concatenated in process order, are the global batch.

    Args:
      indices: indices of the global batches.
      batch_size: global batch size.
      shard: the process.

    Raises:
      ValueError: the number of processes does not divide the batch size.
    """
    if batch_size % shard.count:
        below = max(batch_size // shard.count, 1) * shard.count
        above = -(-batch_size // shard.count) * shard.count
        raise InputError(
            f"batch_size must be a multiple of {shard.count}, the number of processes; found"
            f" {batch_size}; the nearest are {below} and {above}"
        )
    local = batch_size // shard.count
    own = slice(shard.index * local, (shard.index + 1) * local)

    def select(values: np.ndarray) -> np.ndarray:
        batches = values.reshape(-1, batch_size, *values.shape[1:])[:, own]
        return batches.reshape(-1, *values.shape[1:])

    return BatchIndices(*map(select, indices))
