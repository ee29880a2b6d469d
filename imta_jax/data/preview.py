"""What to look at before a long run: batches as the network sees them, class balance, pace.

Only computed and written here (`preview.npz`, `summary.json`); `report` draws it.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imta_jax.data.dataset import Dataset
from imta_jax.data.pipeline.batches import eval_batches, steps_per_epoch, train_batches
from imta_jax.data.pipeline.on_device import copy_to_devices, on_device_batch, on_device_indices
from imta_jax.data.pipeline.tf_pipeline import HostPipeline
from imta_jax.runtime.environment import environment_record
from imta_jax.runtime.files import write_json
from imta_jax.types import Batch

_log = logging.getLogger(__name__)

_SHOWN = 48
_MEASURED_SECONDS = 5.0


def write_preview(
    settings: Mapping[str, Any],
    dataset: Dataset,
    folder: Path,
    *,
    pipeline: str,
    batch_size: int,
    seed: int,
    mesh: Mesh,
) -> None:
    """Writes `preview.npz` and `summary.json` into a folder, made if need be.

    Args:
      settings: `config.data`.
      dataset: what it names.
      folder: where to.
      pipeline: who makes the batches to train on: "device", "tf_data" or "numpy".
      batch_size: images per training batch.
      seed: of the order and the augmentation.
      mesh: the devices.
    """
    host, count = HostPipeline.from_config(settings), len(dataset.splits["train"])
    drawn = {"seed": seed, "host": host}
    shown = {"batch_size": min(_SHOWN, count), **drawn}
    train = next(_host_batches(dataset, settings, shown))
    split = dataset.splits["validation"]
    validation = next(eval_batches(split, dataset.preprocessing, _SHOWN, host=host))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "preview.npz",
        train_images=train.images,
        train_labels=train.labels,
        validation_images=validation.images[validation.mask],
        validation_labels=validation.labels[validation.mask],
    )
    batch_size = _possible(batch_size, count)
    if pipeline == "device":
        batches = _device_batches(dataset, batch_size, seed, mesh)
    else:
        batches = _host_batches(dataset, settings, {"batch_size": batch_size, **drawn})
    summary = {
        **_describe(dataset, settings),
        "pipeline": {"name": pipeline, "batch_size": batch_size, **_measure(batches, batch_size)},
        "environment": environment_record(),
    }
    write_json(folder / "summary.json", summary)


def _possible(batch_size: int, count: int) -> int:
    """The batch size, or what there is; tells of one that training would refuse."""
    try:
        steps_per_epoch(count, batch_size, "config.phase_one.batch_size")
    except ValueError as error:
        _log.warning("training would be refused: %s", error)
    return min(batch_size, count)


def _host_batches(
    dataset: Dataset, settings: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Iterator[Batch]:
    """Training batches, epoch after epoch."""
    train, pipeline = dataset.splits["train"], settings["pipeline"]
    pipeline = "auto" if pipeline == "device" else pipeline
    epoch = 0
    while True:
        yield from train_batches(
            train, dataset.preprocessing, epoch=epoch, pipeline=pipeline, **arguments
        )
        epoch += 1


def _device_batches(
    dataset: Dataset, batch_size: int, seed: int, mesh: Mesh
) -> Iterator[jax.Array]:
    """The same, cut on the device; nothing but the plan travels."""
    train = dataset.splits["train"]
    resident, cut = copy_to_devices(train, mesh), jax.jit(on_device_batch)
    epoch = 0
    while True:
        for rows in on_device_indices(
            train,
            dataset.preprocessing,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            steps_per_dispatch=1,
        ):
            yield cut(resident, rows.index[0], rows.corner[0], rows.flip[0])
        epoch += 1


def _measure(batches: Iterator[Any], batch_size: int) -> dict[str, Any]:
    """Images per second after a first batch, which also compiles and fills buffers."""
    jax.block_until_ready(jax.tree.leaves(next(batches)))
    start, images, seconds = time.perf_counter(), 0, 0.0
    while seconds < _MEASURED_SECONDS:
        jax.block_until_ready(jax.tree.leaves(next(batches)))
        images += batch_size
        seconds = time.perf_counter() - start
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds}


def _describe(dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "source": settings["source"],
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "preprocessing": dataset.preprocessing.describe(),
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
    }
