"""A description of a run before it starts, for `--mode=doctor`."""

import dataclasses
import platform
import shutil
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tabulate import tabulate

from imta_jax.config import PHASES, RunConfig
from imta_jax.data import Dataset
from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.distributed import parameter_shards_hint
from imta_jax.errors import MissingPackageError
from imta_jax.models import MultiExitClassifier, optimize_classifier, resolve_model_config
from imta_jax.models.network_table import network_rows
from imta_jax.runtime.config_fields import flat_fields
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.optional_packages import require
from imta_jax.training import mesh_of, new_phase_one, training_pipeline
from imta_jax.training.batch_statistics import batch_padding_hint
from imta_jax.training.callbacks.progress import device_memory_limit
from imta_jax.training.setup import phase_one_objective, phase_seed, phase_settings
from imta_jax.training.unused_fields import unused_fields

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "opencv-python-headless",
    "tensorflow-cpu",
    "tensorflow",
)
# Extras and modules that a run can do without, for a purpose.
_OPTIONAL = (
    ("train", "writing TensorBoard events", ("tensorboardX",)),
    ("report", "writing the report", ()),
)
_MAX_VALUE_LENGTH = 80
_UNITS = ("B", "kB", "MB", "GB", "TB")


def describe_run(config: RunConfig, dataset: Dataset, workdir: Path) -> str:
    """Describes devices, versions, data, config, network and memory of a run, as text.

    Args:
      config: a config that passed all checks.
      dataset: the data of the run.
      workdir: folder of the run; it need not exist.
    """
    classifier = new_phase_one(config, dataset)
    sections = {
        "devices": _table(_devices(config)),
        "versions": _table(_versions()),
        "folders": _table(_folders(workdir)),
        "data": _table(_data(config, dataset)),
        "config, after overrides": _table(_fields(config)),
        f"network, per image, {config.model.heads} heads": _network(classifier),
        "memory of a device in phase I, predicted": _table(_memory(config, dataset, classifier)),
    }
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections.items())


def _table(pairs: Iterator[tuple[str, Any]]) -> str:
    return tabulate([(name, str(value)) for name, value in pairs], tablefmt="plain")


def _devices(config: RunConfig) -> Iterator[tuple[str, Any]]:
    mesh, devices = mesh_of(config), jax.devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield "processes", f"{jax.process_count()}, this is process {jax.process_index()}"
    yield "mesh", ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    limit = device_memory_limit()
    yield "memory of a device", _size(limit) if limit else "unknown"
    yield "host", f"{platform.node()}, {usable_cores()} cores, {platform.platform()}"


def _versions() -> Iterator[tuple[str, Any]]:
    yield "python", platform.python_version()
    for name in ("imta_jax", *_PACKAGES):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    for extra, purpose, modules in _OPTIONAL:
        try:
            require(extra, purpose, *modules)
        except MissingPackageError as error:
            yield "note", error


def _folders(workdir: Path) -> Iterator[tuple[str, Any]]:
    existing = next(
        path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists()
    )
    yield "workdir", f"{workdir.absolute()}, {_size(shutil.disk_usage(existing).free)} free"
    cache = jax.config.values["jax_compilation_cache_dir"]
    programs = list(Path(cache).glob("*-cache")) if cache else []
    yield "compilation cache", f"{cache}, {len(programs)} programs" if cache else "disabled"


def _data(config: RunConfig, dataset: Dataset) -> Iterator[tuple[str, Any]]:
    yield "source", config.data.source
    yield "splits", ", ".join(f"{name} {len(s):,}" for name, s in dataset.splits.items())
    yield "images", f"{dataset.image_shape}, {dataset.num_classes} classes"
    yield "preprocessing", dataset.preprocessing.describe()
    for name in PHASES:
        settings = phase_settings(config, name)
        augmentation = BatchAugmentation(settings, dataset.num_classes, phase_seed(config, name))
        if not augmentation.is_identity:
            yield f"augmentation, {name}", augmentation.describe()
    yield "input pipeline", training_pipeline(config.data, dataset, mesh_of(config))


def _fields(config: RunConfig) -> Iterator[tuple[str, Any]]:
    resolved = {**config.to_dict(), "model": resolve_model_config(config.model)}
    for name, value in flat_fields(resolved):
        yield name, textwrap.shorten(str(value), _MAX_VALUE_LENGTH)
    for note in unused_fields(config):
        yield "note", note


def _network(classifier: MultiExitClassifier) -> str:
    return tabulate(network_rows(classifier), headers="keys", intfmt=",")


def _memory(
    config: RunConfig, dataset: Dataset, classifier: MultiExitClassifier
) -> Iterator[tuple[str, Any]]:
    phase, mesh = config.phase_one, mesh_of(config)
    images = phase.batch_size // mesh.size // phase.accumulate_parts
    shards, trained = mesh.shape["parameters"], _bytes(nnx.state(classifier, nnx.Param))
    parameters = trained // shards
    accelerated = mesh.devices.flat[0].platform != "cpu"
    rematerialized = {
        name: accelerated and getattr(phase, name)
        for name in ("rematerialize", "rematerialize_layers")
    }
    settings = dataclasses.replace(phase, **rematerialized)
    objective = phase_one_objective(dataclasses.replace(config, phase_one=settings))
    classifier.compute_dtype = jnp.dtype(phase.compute_dtype if accelerated else "float32")
    activations = activation_bytes(classifier, objective, images)
    train = dataset.splits["train"].images
    on_device = training_pipeline(config.data, dataset, mesh) == "device"
    images_bytes = train.nbytes if on_device and isinstance(train, np.ndarray) else 0
    yield "parameters, momentum, gradient", _size(3 * parameters)
    yield "training images on the device", _size(images_bytes)
    yield f"stored activations of {images} images", _size(activations)
    yield "total", _size(3 * parameters + images_bytes + activations)
    yield "note", "without compiler optimizations and without temporary buffers of operations"
    if hint := parameter_shards_hint(shards, trained):
        yield "note", hint
    if mesh.devices.flat[0].platform == "tpu":
        for name in PHASES:
            if hint := batch_padding_hint(phase_settings(config, name), mesh.size):
                yield "note", hint
    rematerializes = phase.rematerialize or phase.rematerialize_layers
    if not accelerated and (rematerializes or phase.compute_dtype != "float32"):
        yield "note", "rematerialize and bfloat16 save memory on accelerators, not on a CPU"


def activation_bytes(classifier: MultiExitClassifier, objective: Any, images: int) -> int:
    """Bytes that the forward pass of a step stores for the backward pass, from a trace.

    Args:
      classifier: the network; it is not changed.
      objective: the objective of the phase.
      images: images per device.

    Returns:
      The bytes that grow with the images; parameters are not included.
    """
    network = nnx.clone(classifier)
    objective.set_mode(network)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def residuals(params: nnx.State, rest: nnx.State, pixels: jax.Array, labels: jax.Array) -> Any:
        def loss(params: nnx.State) -> jax.Array:
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return objective(optimize_classifier(merged, "training"), pixels, labels)[0]

        return jax.vjp(loss, params)[1]

    def stored_bytes(count: int) -> int:
        pixels = jax.ShapeDtypeStruct((count, *classifier.image_shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((count,), jnp.int32)
        return _bytes(jax.eval_shape(residuals, params, rest, pixels, labels))

    # The difference excludes stored parameters and their casts.
    return stored_bytes(2 * images) - stored_bytes(images)


def _bytes(tree: Any) -> int:
    return int(sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _size(count: float) -> str:
    power = min(int(np.log10(max(count, 1))) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
