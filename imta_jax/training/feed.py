"""The input of the compiled step: batches from the host, or on-device data."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from jax.sharding import Mesh

from imta_jax.config import DataConfig, RunConfig
from imta_jax.data import (
    Dataset,
    HostPipeline,
    PaddedCrop,
    Shard,
    resolve_host_pipeline,
    steps_per_epoch,
    train_batches,
)
from imta_jax.data.pipeline.on_device import (
    OnDeviceIndices,
    copy_to_devices,
    fits_device,
    on_device_indices,
    supports_on_device,
)
from imta_jax.distributed import place_batch, place_indices, process_shard
from imta_jax.errors import InputError
from imta_jax.runtime.executable_cache import CachedExecutable
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.setup import Phase, phase_seed, phase_settings
from imta_jax.training.state import TrainState
from imta_jax.training.step import (
    OnDeviceStep,
    TrainStep,
    jit_batch_step,
    jit_on_device_step,
)
from imta_jax.types import Batch


class Feed(NamedTuple):
    """The input of a training loop.

    Attributes:
      name: producer of the batches: "device", "numpy", "tf_data" or "pillow".
      items: (epoch, first step, both from 0) -> the items of the epoch from that step, on the host.
      steps_of: number of training steps in an item.
      advance: (state, item) -> (state, metrics of its steps, [E] or [S, E]).
    """

    name: str
    items: Callable[[int, int], Iterable[Any]]
    steps_of: Callable[[Any], int]
    advance: Callable[[TrainState, Any], tuple[TrainState, ExitMetrics]]


class TimedIterator:
    """Yields items and measures how long the caller waited for them.

    Attributes:
      seconds: total waiting time so far.
    """

    def __init__(self, items: Iterable[Any]):
        self._items, self.seconds = iter(items), 0.0

    def __iter__(self) -> Iterator[Any]:
        """The iterator itself."""
        return self

    def __next__(self) -> Any:
        """The next item."""
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - start


def host_feed(
    name: str, batches: Callable[[int, int], Iterable[Batch]], step: TrainStep, mesh: Mesh
) -> Feed:
    """A feed of host batches, which are placed on the devices for a `jit_batch_step` step."""
    return Feed(
        name, batches, lambda batch: 1, lambda state, batch: step(state, place_batch(batch, mesh))
    )


def training_feed(
    config: RunConfig,
    name: str,
    dataset: Dataset,
    phase: Phase,
    state: TrainState,
    saved: Path | None = None,
) -> Feed:
    """The feed that `config.data` describes, with the compiled step of a phase.

    Args:
      config: the run's config.
      name: "phase_one" or "phase_two".
      dataset: the images.
      phase: its step is compiled here, on first use.
      state: the initial state, whose arrays define the shardings.
      saved: path of the step's executable, if it was compiled ahead of time.

    Raises:
      InputError: no full batch, or a pipeline that cannot produce these images.
      ModuleNotFoundError: the library of the pipeline is not installed.
    """
    pipeline = training_pipeline(config.data, dataset, phase.mesh)
    label, arguments = executable_label(config, name), epoch_arguments(config, name)
    if pipeline == "device":
        packed = phase.packed_statistics(state)
        jitted = jit_on_device_step(phase.step, phase.mesh, state, packed_statistics=packed)
        step = CachedExecutable(jitted, label, phase.mesh, saved)
        return _on_device_feed(config, dataset, step, phase.mesh, arguments)
    jitted = jit_batch_step(phase.step, phase.mesh, state)
    step = CachedExecutable(jitted, label, phase.mesh, saved)
    return host_feed(
        pipeline, _host_batches(config, dataset, pipeline, arguments), step, phase.mesh
    )


def _host_batches(
    config: RunConfig, dataset: Dataset, pipeline: str, arguments: Mapping[str, Any]
) -> Callable[[int, int], Iterator[Batch]]:
    """(epoch, first step) -> the batches of an epoch; `arguments` is from `epoch_arguments`."""
    train, host = dataset.splits["train"], HostPipeline.from_config(config.data)

    def batches(epoch: int, start_step: int) -> Iterator[Batch]:
        return train_batches(
            train,
            dataset.preprocessing,
            epoch=epoch,
            start_step=start_step,
            pipeline=pipeline,
            host=host,
            **arguments,
        )

    return batches


def _on_device_feed(
    config: RunConfig,
    dataset: Dataset,
    step: OnDeviceStep,
    mesh: Mesh,
    arguments: Mapping[str, Any],
) -> Feed:
    """Copies the training images to the devices; items are indices of several batches."""
    train, steps = dataset.splits["train"], steps_per_dispatch(config, mesh)
    padded_crop = cast(PaddedCrop, dataset.preprocessing)  # As `training_pipeline` checks.
    images = copy_to_devices(train, mesh)

    def items(epoch: int, start_step: int) -> Iterable[OnDeviceIndices]:
        return on_device_indices(
            train,
            padded_crop,
            epoch=epoch,
            start_step=start_step,
            steps_per_dispatch=steps,
            **arguments,
        )

    return Feed(
        "device",
        items,
        lambda indices: int(indices.steps),
        lambda state, indices: step(state, images, place_indices(indices, mesh)),
    )


def executable_label(config: RunConfig, name: str) -> str:
    """Names the train step of a config and phase before it is traced, for the executable cache.

    Args:
      config: the run's config.
      name: "phase_one" or "phase_two".
    """
    sections = (config.model, phase_settings(config, name), config.data, config.mesh)
    parts = [name, *(section.to_dict() for section in sections)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def check_feed(config: RunConfig, name: str, dataset: Dataset, mesh: Mesh) -> None:
    """Raises the errors of `training_feed` without placing or compiling anything."""
    field = f"config.{name}.batch_size"
    steps_per_epoch(len(dataset.splits["train"]), phase_settings(config, name).batch_size, field)
    training_pipeline(config.data, dataset, mesh)


def training_pipeline(config: DataConfig, dataset: Dataset, mesh: Mesh) -> str:
    """The producer of the training batches: "device", "numpy", "tf_data" or "pillow".

    Args:
      config: its `pipeline` "auto" selects "device" for arrays that take at most
        `device_memory_share` of a device's memory.
      dataset: the images.
      mesh: the devices.

    Raises:
      InputError: "device" for images that are decoded or resized.
    """
    pipeline, train = config.pipeline, dataset.splits["train"]
    supported = supports_on_device(train, dataset.preprocessing)
    if pipeline == "device" and not supported:
        raise InputError(
            'config.data.pipeline="device" needs images stored as arrays of one size; these are'
            ' decoded or resized: use "tf_data" or "auto"'
        )
    fits = supported and fits_device(train, config.device_memory_share, mesh.local_devices[0])
    if pipeline == "device" or (pipeline == "auto" and fits):
        return "device"
    return resolve_host_pipeline(pipeline, train, dataset.preprocessing)


def epoch_arguments(config: RunConfig, name: str) -> dict[str, Any]:
    """Arguments of an epoch's batches that do not change: batch size, seed and process shard."""
    return {
        "batch_size": phase_settings(config, name).batch_size,
        "seed": phase_seed(config, name),
        "shard": Shard(*process_shard()),
    }


def steps_per_dispatch(config: RunConfig, mesh: Mesh) -> int:
    """Training steps per dispatch for on-device data."""
    # On CPU a dispatch costs little, and single steps keep the progress bar moving.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return config.data.steps_per_dispatch or (1 if on_cpu else config.log.check_every_steps)
