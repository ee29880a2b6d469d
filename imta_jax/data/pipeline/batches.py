"""Training and evaluation batches on the host.

A batch is defined by its indices (`batch_indices.py`), which come from the plan of an epoch
(`augmentation.py`). NumPy cuts crops out of arrays. tf.data or Pillow decodes encoded images, and
OpenCV resizes them (`host_pipeline.py`). Small datasets can also live on the device
(`on_device.py`). Images stay uint8; the step normalizes them.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

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
from imta_jax.data.pipeline.decoder import DECODERS, PILLOW, choose_decoder
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.host_pipeline import HostPipeline, resized_batches
from imta_jax.data.pipeline.pillow_decoding import check_files
from imta_jax.data.pipeline.preprocessing import PaddedCrop, Preprocessing, RandomAreaCrop
from imta_jax.data.split import Split
from imta_jax.errors import InputError, unknown_name
from imta_jax.runtime.optional_packages import require
from imta_jax.types import Batch

HOST_PIPELINES = (*DECODERS, "numpy")


def steps_per_epoch(num_examples: int, batch_size: int, field: str = "batch_size") -> int:
    """Number of full batches of an epoch; the remaining examples are dropped.

    The order changes in every epoch, so that each example is seen in some epochs.

    Args:
      num_examples: number of training examples.
      batch_size: global batch size.
      field: config field of the batch size, for messages.

    Raises:
      ValueError: there is no full batch.
    """
    _check_batch_size(batch_size)
    if num_examples < batch_size:
        raise InputError(
            f"{field} must be at most {num_examples}, the number of training examples; found"
            f" {batch_size}"
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
      split: training examples.
      preprocessing: crop and augmentation.
      batch_size: global batch size, over all devices and processes.
      seed: seed of the run. Order and augmentation depend on (seed, epoch, index) only.
      epoch: number of the epoch, from 0.
      start_step: first batch of the epoch to make; earlier batches are skipped at no cost.
      shard: part of every batch to make; local batches have batch_size / shard.count examples.
      pipeline: "tf_data", "pillow", "numpy" or "auto", see `resolve_host_pipeline`.
      host: options of pipelines that decode.

    Raises:
      ValueError: no full batch, a negative number, a `start_step` beyond the epoch, or a pipeline
        that is unknown or does not support these images.
      ModuleNotFoundError: the library of the pipeline is not installed.
    """
    steps = steps_per_epoch(len(split), batch_size)
    if not 0 <= start_step <= steps:
        raise InputError(
            f"start_step must be 0 to {steps}, the number of batches per epoch; found {start_step}"
        )
    plan = epoch_plan(preprocessing, split.sizes, seed=seed, epoch=epoch)
    indices = train_indices(plan, batch_size=batch_size, start_step=start_step, steps=steps)
    return _batches(split, preprocessing, indices, batch_size, shard, pipeline, host, exact=False)


def eval_batches(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    shard: Shard = SINGLE_PROCESS,
    pipeline: str = "auto",
    host: HostPipeline | None = None,
) -> Iterator[Batch]:
    """All examples in order, without augmentation; the last batch is padded.

    Args:
      split: examples to evaluate.
      preprocessing: crop; its augmentation is not used.
      batch_size: global batch size, over all devices and processes. Padding has mask False, index
        -1, label 0 and zeros as its image.
      shard: part of every batch to make; all processes make the same number of batches.
      pipeline: see `train_batches`; "device", which makes training batches only, acts as "auto".
      host: options of pipelines that decode.

    Raises:
      ValueError: a batch size below 1, or a pipeline that is unknown or does not support these
        images.
      ModuleNotFoundError: the library of the pipeline is not installed.
    """
    _check_batch_size(batch_size)
    indices = eval_indices(preprocessing.eval_windows(split.sizes), batch_size)
    pipeline = "auto" if pipeline == "device" else pipeline
    return _batches(split, preprocessing, indices, batch_size, shard, pipeline, host, exact=True)


def evaluation_images(
    split: Split, preprocessing: Preprocessing, index: Int[np.ndarray, " M"]
) -> np.ndarray:
    """The network's evaluation input for some images, uint8 [M, H, W, C]."""
    if len(index) == 0:
        return np.zeros((0, 1, 1, 1), np.uint8)
    (batch,) = eval_batches(split.select(index), preprocessing, len(index))
    return np.asarray(batch.images)


def resolve_host_pipeline(pipeline: str, split: Split, preprocessing: Preprocessing) -> str:
    """The pipeline that makes batches on the host: "numpy", "tf_data" or "pillow".

    Arrays that are cropped but not resized use NumPy, also under "tf_data" and "pillow": the
    batches are the same.

    Args:
      pipeline: "auto", "numpy", "tf_data" or "pillow". "auto" takes the decoder of encoded images,
        which was chosen when they were loaded; for arrays, tf.data if TensorFlow is installed.
      split: the images.
      preprocessing: their crop.

    Raises:
      ValueError: an unknown name, or a pipeline that cannot make batches of these images.
      ModuleNotFoundError: the library of the pipeline is not installed.
    """
    if pipeline not in ("auto", *HOST_PIPELINES):
        raise unknown_name("pipeline", pipeline, ["auto", "device", *HOST_PIPELINES])
    images = split.images
    if isinstance(preprocessing, PaddedCrop) and not isinstance(images, EncodedImages):
        return "numpy"
    if pipeline == "numpy":
        raise InputError(
            'pipeline is "numpy", which only crops arrays; expected "tf_data", "pillow" or "auto"'
            " for images that must be decoded or resized"
        )
    require("train", "resizing images", "cv2")
    if pipeline == "auto" and isinstance(images, EncodedImages):
        return images.decoder
    decoder = choose_decoder(pipeline)
    if decoder == PILLOW and isinstance(images, EncodedImages):
        check_files(images)
    return decoder


def _batches(
    split: Split,
    preprocessing: Preprocessing,
    indices: BatchIndices,
    batch_size: int,
    shard: Shard,
    pipeline: str,
    host: HostPipeline | None,
    *,
    exact: bool,
) -> Iterator[Batch]:
    """Starts the pipeline; invalid arguments raise here and not at the first batch."""
    indices, local_size = shard_of(indices, batch_size, shard), batch_size // shard.count
    host = host or HostPipeline()
    made: Iterable[tuple[np.ndarray, np.ndarray]]
    resolved = resolve_host_pipeline(pipeline, split, preprocessing)
    if resolved == "numpy":
        if pipeline == "tf_data" and host.service:
            raise InputError(
                f"config.data.service is {host.service!r}, but the images are arrays in memory and"
                " need no decoding; leave it empty"
            )
        made = _cropped_batches(split.array, indices, local_size)
    else:
        assert isinstance(preprocessing, RandomAreaCrop)
        if resolved == PILLOW and host.service:
            raise InputError(
                f"config.data.service is {host.service!r}, which decodes with TensorFlow; leave it"
                ' empty for config.data.pipeline="pillow"'
            )
        made = resized_batches(
            split.images,
            indices,
            local_size,
            host,
            size=preprocessing.size,
            exact=exact,
            decoder=resolved,
        )
    return (_as_batch(split, images, index) for images, index in made)


def _cropped_batches(
    images: np.ndarray, indices: BatchIndices, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Crops arrays in NumPy; yields images and example indices of each batch."""
    for start in range(0, len(indices.index), batch_size):
        index, window, flip = (values[start : start + batch_size] for values in indices)
        cropped = crop(images[index], window, flip)
        cropped[index == PADDING_INDEX] = 0
        yield cropped, index


def _as_batch(split: Split, images: np.ndarray, index: np.ndarray) -> Batch:
    mask = index != PADDING_INDEX
    labels = np.where(mask, split.labels[index], 0).astype(np.int32)
    return Batch(images, labels, mask, index.astype(np.int32))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; found {batch_size}")
