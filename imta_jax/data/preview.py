"""A preview of the data before a long run: batches, class balance and throughput.

Writes `preview.npz` and `summary.json`; `imta_jax.report` draws them.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imta_jax.config import DataConfig
from imta_jax.data.dataset import Dataset
from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.data.pipeline.batches import eval_batches, steps_per_epoch, train_batches
from imta_jax.data.pipeline.host_pipeline import HostPipeline
from imta_jax.data.pipeline.on_device import copy_to_devices, on_device_batch, on_device_indices
from imta_jax.data.pipeline.preprocessing import PaddedCrop
from imta_jax.runtime.array_files import write_npz
from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json
from imta_jax.types import Batch

_log = logging.getLogger(__name__)

_SHOWN_IMAGES = 48
_MEASURED_SECONDS = 5.0


def write_preview(
    config: DataConfig,
    dataset: Dataset,
    folder: Path,
    *,
    pipeline: str,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    augmentation: BatchAugmentation | None = None,
) -> None:
    """Writes `preview.npz` and `summary.json` into a folder, which is created if necessary.

    Args:
      config: `config.data`.
      dataset: the dataset it names.
      folder: where to write.
      pipeline: pipeline of the training batches: "device", "numpy", "tf_data" or "pillow".
      batch_size: global training batch size.
      seed: seed of order and augmentation.
      mesh: the devices.
      augmentation: augmentation in the training step, after crop and flip, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_images(config, dataset, folder / "preview.npz", seed, augmentation)
    batch_size = _feasible_batch_size(batch_size, len(dataset.splits["train"]))
    if pipeline == "device":
        batches = _device_batches(dataset, batch_size, seed, mesh)
    else:
        batches = _host_batches(config, dataset, batch_size, seed)
    summary = {
        **_describe(config, dataset, augmentation),
        "pipeline": {"name": pipeline, "batch_size": batch_size, **_measure(batches, batch_size)},
        "environment": environment_record(),
    }
    write_json(folder / "summary.json", summary)


def _write_images(
    config: DataConfig,
    dataset: Dataset,
    path: Path,
    seed: int,
    augmentation: BatchAugmentation | None,
) -> None:
    """Writes one augmented training batch and one validation batch.

    The label of a mixed image is the class with the largest share.
    """
    num_shown = min(_SHOWN_IMAGES, len(dataset.splits["train"]))
    train = next(_host_batches(config, dataset, num_shown, seed))
    if augmentation is not None:
        train = jax.tree.map(np.asarray, jax.jit(augmentation)(0, train))
    classes = train.labels if train.labels.ndim == 1 else train.labels.argmax(axis=1)
    split, host = dataset.splits["validation"], HostPipeline.from_config(config)
    validation = next(eval_batches(split, dataset.preprocessing, _SHOWN_IMAGES, host=host))
    write_npz(
        path,
        train_images=train.images,
        train_labels=classes,
        validation_images=validation.images[validation.mask],
        validation_labels=validation.labels[validation.mask],
    )


def _feasible_batch_size(batch_size: int, num_examples: int) -> int:
    """At most the number of examples; warns if training would reject the batch size."""
    try:
        steps_per_epoch(num_examples, batch_size, "config.phase_one.batch_size")
    except ValueError as error:
        _log.warning("training would fail: %s", error)
    return min(batch_size, num_examples)


def _host_batches(
    config: DataConfig, dataset: Dataset, batch_size: int, seed: int
) -> Iterator[Batch]:
    """Training batches from the host, epoch after epoch."""
    pipeline = "auto" if config.pipeline == "device" else config.pipeline
    epoch = 0
    while True:
        yield from train_batches(
            dataset.splits["train"],
            dataset.preprocessing,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            pipeline=pipeline,
            host=HostPipeline.from_config(config),
        )
        epoch += 1


def _device_batches(dataset: Dataset, batch_size: int, seed: int, mesh: Mesh) -> Iterator[Batch]:
    """The same batches, cropped on the device."""
    train = dataset.splits["train"]
    preprocessing = dataset.preprocessing
    assert isinstance(preprocessing, PaddedCrop), "checked by supports_on_device"
    on_device, crop_batch = copy_to_devices(train, mesh), jax.jit(on_device_batch)
    epoch = 0
    while True:
        for indices in on_device_indices(
            train,
            preprocessing,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            steps_per_dispatch=1,
        ):
            yield crop_batch(on_device, indices.index[0], indices.corner[0], indices.flip[0])
        epoch += 1


def _measure(batches: Iterator[Batch], batch_size: int) -> dict[str, Any]:
    """Images per second, after a first batch that compiles and fills buffers."""
    jax.block_until_ready(jax.tree.leaves(next(batches)))
    start, images, seconds = time.perf_counter(), 0, 0.0
    while seconds < _MEASURED_SECONDS:
        jax.block_until_ready(jax.tree.leaves(next(batches)))
        images += batch_size
        seconds = time.perf_counter() - start
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds}


def _describe(
    config: DataConfig, dataset: Dataset, augmentation: BatchAugmentation | None
) -> dict[str, Any]:
    more = "" if augmentation is None else augmentation.describe()
    in_step = f" In the training step: {more}." if more else ""
    return {
        "dataset": dataset.name,
        "source": config.source,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "preprocessing": dataset.preprocessing.describe() + in_step,
        "splits": {
            name: {
                "examples": len(split),
                "per_class": np.bincount(split.labels, minlength=dataset.num_classes).tolist(),
                "skipped": dataset.skipped.get(name, 0),
            }
            for name, split in dataset.splits.items()
        },
        "statistics": {
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "source": dataset.statistics_source,
        },
        "exif_orientation": config.exif_orientation,
        "findings": dataset.findings.to_dict(),
    }
