"""The rows of batches: which example each holds, what is shown of it, and whose row it is."""

from typing import NamedTuple

import numpy as np

from imta_jax.data.pipeline.augmentation import EpochPlan

PADDING_INDEX = -1


class Shard(NamedTuple):
    """The part of every batch that one of several processes makes.

    Attributes:
      index: of the process, from 0.
      count: of processes.
    """

    index: int = 0
    count: int = 1


SINGLE_PROCESS = Shard()


class BatchIndices(NamedTuple):
    """R rows, batch after batch.

    Attributes:
      index: int64 [R], the example of each row, or -1 where it only fills up the batch.
      window: float32 [R, 4], top, left, height and width of the part that is shown.
      flip: bool [R], whether it is mirrored.
    """

    index: np.ndarray
    window: np.ndarray
    flip: np.ndarray


def train_indices(plan: EpochPlan, *, batch_size: int, start_step: int, steps: int) -> BatchIndices:
    """The rows of an epoch's batches from `start_step` to `steps`."""
    index = plan.order[start_step * batch_size : steps * batch_size]
    return BatchIndices(index, plan.window[index], plan.flip[index])


def eval_indices(windows: np.ndarray, batch_size: int) -> BatchIndices:
    """All examples in order, with their windows [N, 4]; the last batch is filled up."""
    count = len(windows)
    filling = -count % batch_size
    index = np.concatenate([np.arange(count), np.full(filling, PADDING_INDEX)])
    window = np.concatenate([windows, np.zeros((filling, 4), np.float32)])
    return BatchIndices(index, window, np.zeros(len(index), bool))


def shard_of(rows: BatchIndices, batch_size: int, shard: Shard) -> BatchIndices:
    """One process's rows of every batch: a run of `batch_size / count` of them.

    Put side by side in the order of the processes, they are the whole batch again.

    Raises:
      ValueError: the processes do not divide the batch.
    """
    if batch_size % shard.count:
        raise ValueError(
            f"batch size {batch_size} does not divide over {shard.count} processes; the nearest"
            f" that do: {max(batch_size // shard.count, 1) * shard.count} or"
            f" {-(-batch_size // shard.count) * shard.count}"
        )
    local = batch_size // shard.count
    mine = slice(shard.index * local, (shard.index + 1) * local)

    def pick(values: np.ndarray) -> np.ndarray:
        batches = values.reshape(-1, batch_size, *values.shape[1:])[:, mine]
        return batches.reshape(-1, *values.shape[1:])

    return BatchIndices(*map(pick, rows))
