"""How the images of an epoch reach the compiled step: batch by batch, or from the device itself."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from imta_jax.data import (
    Dataset,
    HostPipeline,
    Shard,
    resolve_host_pipeline,
    steps_per_epoch,
    train_batches,
)
from imta_jax.data.pipeline.on_device import (
    copy_to_devices,
    fits_device,
    on_device_indices,
    supports_on_device,
)
from imta_jax.distributed import place_batch, place_rows, process_shard
from imta_jax.runtime.config_diff import to_json_types
from imta_jax.runtime.executable_cache import CachedExecutable
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.state import TrainState
from imta_jax.training.step import TrainStep, on_batches, on_resident
from imta_jax.types import Batch

PHASES = ("phase_one", "phase_two")


class Feed(NamedTuple):
    """What a loop takes an epoch's items from, and what it does with each.

    Attributes:
      name: who makes the batches: "device", "tf_data" or "numpy".
      items: (epoch, start step, both from 0) -> the epoch's items from there on, on the host.
      steps_of: how many steps an item is.
      advance: (state, item) -> (state, metrics of its steps, [E] or [S, E]).
    """

    name: str
    items: Callable[[int, int], Iterable[Any]]
    steps_of: Callable[[Any], int]
    advance: Callable[[TrainState, Any], tuple[TrainState, ExitMetrics]]


def host_feed(
    name: str, batches: Callable[[int, int], Iterable[Batch]], step: TrainStep, mesh: Mesh
) -> Feed:
    """Batches that the host makes, each put on the devices for a step compiled by `on_batches`."""
    return Feed(
        name, batches, lambda batch: 1, lambda state, batch: step(state, place_batch(batch, mesh))
    )


def training_feed(
    config: Mapping[str, Any],
    name: str,
    dataset: Dataset,
    step: TrainStep,
    mesh: Mesh,
    state: TrainState,
) -> Feed:
    """The feed of a phase, as `config.data` wants it.

    Args:
      config: a whole config.
      name: of the phase.
      dataset: the images.
      step: not compiled yet, see `step.train_step`.
      mesh: the devices.
      state: that training starts from; where its arrays lie, they stay.

    Raises:
      ValueError: no full batch, or a pipeline that is unknown or cannot make these images.
      ModuleNotFoundError: a pipeline whose library is not installed.
    """
    train, settings = dataset.splits["train"], config["data"]
    pipeline = training_pipeline(settings, dataset, mesh)
    draw = epoch_arguments(config, name)
    if pipeline != "device":

        def batches(epoch: int, start_step: int) -> Iterator[Batch]:
            return train_batches(
                train,
                dataset.preprocessing,
                epoch=epoch,
                start_step=start_step,
                pipeline=pipeline,
                host=HostPipeline.from_config(settings),
                **draw,
            )

        kept = CachedExecutable(on_batches(step, mesh, state), executable_label(config, name), mesh)
        return host_feed(pipeline, batches, kept, mesh)
    several = steps_per_dispatch(config, mesh)
    images = copy_to_devices(train, mesh)
    advance = CachedExecutable(on_resident(step, mesh, state), executable_label(config, name), mesh)
    return Feed(
        pipeline,
        lambda epoch, start_step: on_device_indices(
            train,
            dataset.preprocessing,
            epoch=epoch,
            start_step=start_step,
            steps_per_dispatch=several,
            **draw,
        ),
        lambda rows: int(rows.steps),
        lambda state, rows: advance(state, images, place_rows(rows, mesh)),
    )


def executable_label(config: Mapping[str, Any], phase: str) -> str:
    """Names the train step of a config and phase before it is traced, for the executable cache.

    Args:
      config: the run's config.
      phase: "phase_one" or "phase_two".
    """
    parts = [phase, *(to_json_types(config[name]) for name in ("model", phase, "data", "mesh"))]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()[:16]


def check_feed(config: Mapping[str, Any], name: str, dataset: Dataset, mesh: Mesh) -> None:
    """Refuses what `training_feed` would refuse; places and compiles nothing."""
    train, settings = dataset.splits["train"], config["data"]
    steps_per_epoch(len(train), config[name]["batch_size"], f"config.{name}.batch_size")
    training_pipeline(settings, dataset, mesh)
    HostPipeline.from_config(settings)
    steps_per_dispatch(config, mesh)


def training_pipeline(settings: Mapping[str, Any], dataset: Dataset, mesh: Mesh) -> str:
    """Who makes the training batches: "device", "tf_data" or "numpy".

    Args:
      settings: `config.data`; its `pipeline` "auto" is the device where the images are arrays that
        take no more than `device_memory_share` of its memory.
      dataset: the images.
      mesh: the devices.
    """
    wish, share = settings["pipeline"], settings["device_memory_share"]
    train = dataset.splits["train"]
    if not 0 <= share <= 1:
        raise ValueError(f"config.data.device_memory_share is {share}, expected 0 to 1")
    able = supports_on_device(train, dataset.preprocessing)
    if wish == "device" and not able:
        raise ValueError(
            'pipeline "device" cuts batches out of arrays on the device; these images are decoded'
            ' or resized, which "tf_data" (or "auto") does on the host'
        )
    device = mesh.local_devices[0]
    if wish == "device" or (wish == "auto" and able and fits_device(train, share, device)):
        return "device"
    return resolve_host_pipeline(wish, train, dataset.preprocessing)


def epoch_arguments(config: Mapping[str, Any], phase: str) -> dict[str, Any]:
    """What decides an epoch's batches besides its number: seed, batch size, share."""
    return {
        "batch_size": config[phase]["batch_size"],
        # The phases see the images in different orders, each reproducible from the one seed.
        "seed": 2 * config["seed"] + PHASES.index(phase),
        "shard": Shard(*process_shard()),
    }


def steps_per_dispatch(config: Mapping[str, Any], mesh: Mesh) -> int:
    """How many steps the device does between two words with the host."""
    wish, look = config["data"]["steps_per_dispatch"], config["log"]["check_every_steps"]
    if wish < 0:
        raise ValueError(f"config.data.steps_per_dispatch is {wish}, expected 0 (auto) or more")
    # On a processor a dispatch costs nothing beside a step, and a bar that moves is worth more.
    on_processor = mesh.devices.flat[0].platform == "cpu"
    return wish or (1 if on_processor else look)
