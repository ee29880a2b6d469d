"""Batches for training and evaluation, made by tf.data or by NumPy: the same, bit for bit.

Both are written as rows: the example each row of each batch holds, and where its crop begins. What
is random is settled before, in `augmentation.py`; images stay uint8, and steps normalise them.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imta_jax.data.augmentation import augment, epoch_plan
from imta_jax.data.dataset import Split
from imta_jax.data.tensorflow_import import has_tensorflow, import_tensorflow
from imta_jax.errors import unknown_name
from imta_jax.types import Batch

if TYPE_CHECKING:
    import tensorflow as tf

_PADDING_INDEX = -1


class _Rows(NamedTuple):
    """R = batches * batch size rows: their examples, or -1, and the crops of those, each [R]."""

    index: np.ndarray
    row_offset: np.ndarray
    column_offset: np.ndarray
    flip: np.ndarray


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Number of full batches; the remainder waits for another epoch, in another order.

    Raises:
      ValueError: there is no full batch.
    """
    _check_batch_size(batch_size)
    if num_examples < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but the split has {num_examples} examples: at most"
            f" {num_examples} make a full batch"
        )
    return num_examples // batch_size


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    crop_padding: int = 4,
    flip: bool = True,
    pipeline: str = "auto",
) -> Iterator[Batch]:
    """The full batches of one epoch, shuffled and augmented.

    Args:
      split: examples to train on.
      batch_size: examples per batch, over all devices.
      seed: of the run; (seed, epoch, index) alone decide order and augmentation.
      epoch: from 0.
      start_step: batches of this epoch that were already seen and are left out, without being made.
      crop_padding: pixels of zeros on each side before cropping back; 0 for no crop.
      flip: whether to mirror half of the images left to right.
      pipeline: "tf_data", "numpy", or "auto": tf_data where TensorFlow is installed.

    Raises:
      ValueError: no full batch, a negative number, a start_step beyond the epoch, or an unknown
        pipeline.
      ModuleNotFoundError: "tf_data" where TensorFlow is not installed.
    """
    steps = steps_per_epoch(len(split), batch_size)
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step is {start_step}, expected 0 to {steps}, the epoch's batches")
    plan = epoch_plan(
        seed=seed, epoch=epoch, num_examples=len(split), crop_padding=crop_padding, flip=flip
    )
    index = plan.order[start_step * batch_size : steps * batch_size]
    rows = _Rows(index, plan.row_offset[index], plan.column_offset[index], plan.flip[index])
    return _execution(pipeline)(split, rows, batch_size, crop_padding)


def eval_batches(split: Split, batch_size: int, *, pipeline: str = "auto") -> Iterator[Batch]:
    """All examples in order, as they are; the last batch is filled up with masked rows.

    Args:
      split: examples to evaluate.
      batch_size: rows per batch, over all devices; a padding row has mask False, index -1, label 0
        and a black image.
      pipeline: as in `train_batches`.

    Raises:
      ValueError: a batch size below 1 or an unknown pipeline.
      ModuleNotFoundError: "tf_data" where TensorFlow is not installed.
    """
    _check_batch_size(batch_size)
    padding = np.full(-len(split) % batch_size, _PADDING_INDEX)
    index = np.concatenate([np.arange(len(split)), padding])
    nowhere = np.zeros_like(index)
    rows = _Rows(index, nowhere, nowhere, nowhere.astype(bool))
    return _execution(pipeline)(split, rows, batch_size, 0)


def _numpy_batches(
    split: Split, rows: _Rows, batch_size: int, crop_padding: int
) -> Iterator[Batch]:
    for start in range(0, len(rows.index), batch_size):
        index, *crop = (values[start : start + batch_size] for values in rows)
        images = augment(split.images[index], *crop, crop_padding=crop_padding)
        images[index == _PADDING_INDEX] = 0
        yield _batch(split, images, index)


def _tf_data_batches(
    split: Split, rows: _Rows, batch_size: int, crop_padding: int
) -> Iterator[Batch]:
    tf = import_tensorflow()
    with tf.device("CPU"):
        images = tf.constant(split.images)

    def read(index: "tf.Tensor", *crop: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        # A padding row reads image 0 and loses it again: tf.gather refuses -1.
        augmented = _tf_augment(tf.gather(images, tf.maximum(index, 0)), *crop, crop_padding)
        padding = (index == _PADDING_INDEX)[:, None, None, None]
        return tf.where(padding, tf.zeros_like(augmented), augmented), index

    dataset = tf.data.Dataset.from_tensor_slices(tuple(rows)).batch(batch_size)
    # Plain TensorFlow operations: nothing for AutoGraph to rewrite.
    read = tf.autograph.experimental.do_not_convert(read)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    for augmented, index in dataset.as_numpy_iterator():
        yield _batch(split, augmented, index)


def _tf_augment(
    images: "tf.Tensor",
    row_offset: "tf.Tensor",
    column_offset: "tf.Tensor",
    flip: "tf.Tensor",
    crop_padding: int,
) -> "tf.Tensor":
    """`augmentation.augment` in TensorFlow's operations."""
    tf = import_tensorflow()
    _, height, width, _ = images.shape
    side = [crop_padding, crop_padding]
    rows = row_offset[:, None] + tf.range(height, dtype=row_offset.dtype)
    columns = column_offset[:, None] + tf.range(width, dtype=column_offset.dtype)
    columns = tf.where(flip[:, None], columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], side, side, [0, 0]])
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _batch(split: Split, images: np.ndarray, index: np.ndarray) -> Batch:
    mask = index != _PADDING_INDEX
    labels = np.where(mask, split.labels[index], 0).astype(np.int32)
    return Batch(images, labels, mask, index.astype(np.int32))


_Execution = Callable[[Split, _Rows, int, int], Iterator[Batch]]
_EXECUTIONS: dict[str, _Execution] = {"tf_data": _tf_data_batches, "numpy": _numpy_batches}


def _execution(pipeline: str) -> _Execution:
    """The function that makes the batches; refuses now, not when the first batch is asked for."""
    if pipeline == "auto":
        pipeline = "tf_data" if has_tensorflow() else "numpy"
    if pipeline not in _EXECUTIONS:
        raise unknown_name("pipeline", pipeline, ["auto", *_EXECUTIONS])
    if pipeline == "tf_data" and not has_tensorflow():
        raise ModuleNotFoundError(
            'pipeline "tf_data" needs TensorFlow, which cannot be imported: pip install'
            ' tensorflow-cpu, or choose "numpy" (or "auto"), which makes the same batches'
        )
    return _EXECUTIONS[pipeline]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
