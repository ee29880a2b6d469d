"""Batches for training and evaluation: the same bit for bit, whoever makes them.

A batch is rows (`rows.py`) of an epoch's plan (`augmentation.py`); here NumPy or tf.data carries
them out; small datasets can live on the device instead, see `resident.py`. Images stay uint8, and
steps normalise them.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from imta_jax.data.dataset import Split
from imta_jax.data.pipeline.augmentation import crop, epoch_plan
from imta_jax.data.pipeline.batch_indices import (
    PADDING_INDEX,
    SINGLE_PROCESS,
    BatchIndices,
    Shard,
    eval_indices,
    shard_of,
    train_indices,
)
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing, RandomAreaCrop
from imta_jax.data.pipeline.tf_pipeline import HostPipeline, array_batches, resized_batches
from imta_jax.data.tensorflow_import import has_tensorflow
from imta_jax.errors import unknown_name
from imta_jax.types import Batch

HOST_PIPELINES = ("tf_data", "numpy")


def steps_per_epoch(num_examples: int, batch_size: int, field: str = "batch_size") -> int:
    """Number of full batches; the remainder waits for another epoch, in another order.

    Args:
      num_examples: of the split.
      batch_size: over all devices.
      field: the config field it comes from; opens the message.

    Raises:
      ValueError: there is no full batch.
    """
    _check_batch_size(batch_size)
    if num_examples < batch_size:
        raise ValueError(
            f"{field} is {batch_size}, but the training split has {num_examples} examples: set it"
            f" to {num_examples} or less, or take more of them to train on"
        )
    return num_examples // batch_size


def train_batches(
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    shard: Shard = SINGLE_PROCESS,
    pipeline: str = "auto",
    host: HostPipeline | None = None,
) -> Iterator[Batch]:
    """The full batches of one epoch, shuffled and augmented.

    Args:
      split: examples to train on.
      preprocessing: what is shown of each.
      batch_size: examples per batch, over all devices and processes.
      seed: of the run; (seed, epoch, index) alone decide order and augmentation.
      epoch: from 0.
      start_step: batches of this epoch that were already seen and are left out, without being made.
      shard: this process's part of every batch; batches hold batch_size / shard.count rows.
      pipeline: "tf_data", "numpy", or "auto": see `resolve_host_pipeline`.
      host: how tf.data works.

    Raises:
      ValueError: no full batch, a negative number, a start_step beyond the epoch, an unknown
        pipeline or one that cannot make these images.
      ModuleNotFoundError: "tf_data" where TensorFlow is not installed.
    """
    steps = steps_per_epoch(len(split), batch_size)
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step is {start_step}, expected 0 to {steps}, the epoch's batches")
    plan = epoch_plan(preprocessing, split.sizes, seed=seed, epoch=epoch)
    rows = train_indices(plan, batch_size=batch_size, start_step=start_step, steps=steps)
    return _batches(split, preprocessing, rows, batch_size, shard, pipeline, host, exact=False)


def eval_batches(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    shard: Shard = SINGLE_PROCESS,
    pipeline: str = "auto",
    host: HostPipeline | None = None,
) -> Iterator[Batch]:
    """All examples in order, not augmented; the last batch is filled up with masked rows.

    Args:
      split: examples to evaluate.
      preprocessing: what is shown of each.
      batch_size: rows per batch, over all devices and processes; a padding row has mask False,
        index -1, label 0 and a black image.
      shard: this process's part of every batch; every process makes as many batches.
      pipeline: as in `train_batches`; "device", which makes batches to train on, is as "auto".
      host: how tf.data works.

    Raises:
      ValueError: a batch size below 1 or a pipeline that cannot make these images.
      ModuleNotFoundError: "tf_data" where TensorFlow is not installed.
    """
    _check_batch_size(batch_size)
    rows = eval_indices(preprocessing.eval_windows(split.sizes), batch_size)
    pipeline = "auto" if pipeline == "device" else pipeline
    return _batches(split, preprocessing, rows, batch_size, shard, pipeline, host, exact=True)


def evaluation_images(split: Split, preprocessing: Preprocessing, index: np.ndarray) -> np.ndarray:
    """Some images as evaluation sees them, uint8 [M, H, W, C]; `index` is integers [M]."""
    if len(index) == 0:
        return np.zeros((0, 1, 1, 1), np.uint8)
    some = Split(split.images[index], split.labels[index], split.source_index[index])
    (batch,) = eval_batches(some, preprocessing, len(index))
    return batch.images


def resolve_host_pipeline(pipeline: str, split: Split, preprocessing: Preprocessing) -> str:
    """Who makes the batches on the host: "numpy" or "tf_data".

    Args:
      pipeline: one of the two, or "auto": NumPy for arrays, which it cuts faster than tf.data, and
        tf.data for what has to be decoded or resized.
      split: the images.
      preprocessing: what is shown of them.

    Raises:
      ValueError: an unknown name, or "numpy" for images that have to be decoded or resized.
      ModuleNotFoundError: tf.data is needed and TensorFlow not installed.
    """
    simple = isinstance(preprocessing, PaddedCrop) and not isinstance(split.images, EncodedImages)
    if pipeline == "auto":
        pipeline = "numpy" if simple else "tf_data"
    if pipeline not in HOST_PIPELINES:
        raise unknown_name("pipeline", pipeline, ["auto", "device", *HOST_PIPELINES])
    if pipeline == "numpy" and not simple:
        raise ValueError(
            'pipeline "numpy" cuts windows out of arrays only; these images are decoded or resized,'
            ' which "tf_data" (or "auto") does'
        )
    if pipeline == "tf_data" and not has_tensorflow():
        choice = ' or choose "numpy" (or "auto"), which makes the same batches' if simple else ""
        raise ModuleNotFoundError(
            'pipeline "tf_data" needs TensorFlow, which cannot be imported: pip install'
            f" tensorflow-cpu{',' if choice else ''}{choice}"
        )
    return pipeline


def _batches(
    split: Split,
    preprocessing: Preprocessing,
    rows: BatchIndices,
    batch_size: int,
    shard: Shard,
    pipeline: str,
    host: HostPipeline | None,
    *,
    exact: bool,
) -> Iterator[Batch]:
    """Chooses who carries rows out, and refuses now, not when the first batch is asked for."""
    rows, local = shard_of(rows, batch_size, shard), batch_size // shard.count
    made: Iterable[tuple[np.ndarray, np.ndarray]]
    if resolve_host_pipeline(pipeline, split, preprocessing) == "numpy":
        made = _numpy_batches(split.images, rows, local)
    elif isinstance(preprocessing, RandomAreaCrop):
        made = resized_batches(
            split.images, rows, local, host or HostPipeline(), size=preprocessing.size, exact=exact
        )
    else:
        made = array_batches(split.images, rows, local, host or HostPipeline())
    return (_batch(split, images, index) for images, index in made)


def _numpy_batches(
    images: np.ndarray, rows: BatchIndices, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows.index), batch_size):
        index, window, flip = (values[start : start + batch_size] for values in rows)
        cut = crop(images[index], window, flip)
        cut[index == PADDING_INDEX] = 0
        yield cut, index


def _batch(split: Split, images: np.ndarray, index: np.ndarray) -> Batch:
    mask = index != PADDING_INDEX
    labels = np.where(mask, split.labels[index], 0).astype(np.int32)
    return Batch(images, labels, mask, index.astype(np.int32))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
