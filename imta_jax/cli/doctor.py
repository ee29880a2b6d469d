"""What a run would be made of, told before anything is spent: `--mode=doctor`."""

import dataclasses
import platform
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tabulate import tabulate

from imta_jax.data import Dataset
from imta_jax.models import MultiExitClassifier, resolve_model_config
from imta_jax.models.network_table import network_rows
from imta_jax.runtime.environment import usable_cores
from imta_jax.training import mesh_of, new_phase_one, training_pipeline
from imta_jax.training.interval import device_limit
from imta_jax.training.phases import phase_one_objective

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
_MOST_CHARACTERS = 80
_UNITS = ("B", "kB", "MB", "GB", "TB")


def examine(config: Mapping[str, Any], dataset: Dataset, workdir: Path) -> str:
    """Devices, versions, data, config, network and memory of a run, as text.

    Args:
      config: a whole config that was checked.
      dataset: its data.
      workdir: its folder, which need not be there.
    """
    classifier = new_phase_one(config, dataset)
    parts = {
        "devices": _table(_devices(config)),
        "versions": _table(_versions()),
        "folders": _table(_folders(workdir)),
        "data": _table(_data(config, dataset)),
        "config, after overrides": _table(
            _flat({**config, "model": resolve_model_config(config["model"])})
        ),
        "network, per image, independent heads": _network(classifier),
        "memory of a device in phase I, predicted": _table(_memory(config, dataset, classifier)),
    }
    return "\n\n".join(f"== {title}\n{text}" for title, text in parts.items())


def _table(pairs: Iterator[tuple[str, Any]]) -> str:
    return tabulate([(name, str(value)) for name, value in pairs], tablefmt="plain")


def _devices(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    mesh, devices = mesh_of(config), jax.devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield "processes", f"{jax.process_count()}, this is number {jax.process_index()}"
    yield "mesh", ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    yield "memory of a device", _size(device_limit()) if device_limit() else "not told"
    yield "host", f"{platform.node()}, {usable_cores()} cores, {platform.platform()}"


def _versions() -> Iterator[tuple[str, Any]]:
    yield "python", platform.python_version()
    for name in ("imta_jax", *_PACKAGES):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _folders(workdir: Path) -> Iterator[tuple[str, Any]]:
    there = next(
        path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists()
    )
    yield "workdir", f"{workdir.absolute()}, {_size(shutil.disk_usage(there).free)} free"
    cache = jax.config.jax_compilation_cache_dir
    kept = list(Path(cache).glob("*-cache")) if cache else []
    yield "compiled programs", f"{cache}, {len(kept)} kept" if cache else "not kept"


def _data(config: Mapping[str, Any], dataset: Dataset) -> Iterator[tuple[str, Any]]:
    yield "source", config["data"]["source"]
    yield "splits", ", ".join(f"{name} {len(s):,}" for name, s in dataset.splits.items())
    yield "images", f"{dataset.image_shape}, {dataset.num_classes} classes"
    yield "shown", dataset.preprocessing.describe()
    yield "batches made by", training_pipeline(config["data"], dataset, mesh_of(config))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", textwrap.shorten(str(value), _MOST_CHARACTERS)


def _network(classifier: MultiExitClassifier) -> str:
    return tabulate(list(network_rows(classifier)), headers="keys", intfmt=",")


def _memory(
    config: Mapping[str, Any], dataset: Dataset, classifier: MultiExitClassifier
) -> Iterator[tuple[str, Any]]:
    phase, mesh = config["phase_one"], mesh_of(config)
    images = phase["batch_size"] // mesh.size // phase["accumulate_parts"]
    parameters = _bytes(nnx.state(classifier, nnx.Param)) // mesh.shape["parameters"]
    saves = mesh.devices.flat[0].platform != "cpu"
    objective = dataclasses.replace(
        phase_one_objective(config), rematerialize=saves and phase["rematerialize"]
    )
    classifier.compute_dtype = jnp.dtype(phase["compute_dtype"] if saves else "float32")
    kept = activation_bytes(classifier, objective, images)
    train = dataset.splits["train"].images
    here = training_pipeline(config["data"], dataset, mesh) == "device"
    images_bytes = train.nbytes if here else 0
    yield "parameters, momentum, gradient", _size(3 * parameters)
    yield "training images that live there", _size(images_bytes)
    yield f"activations kept for {images} images", _size(kept)
    yield "together", _size(3 * parameters + images_bytes + kept)
    yield "note", "before the compiler saves some of it; buffers of single operations come on top"
    if not saves and (phase["rematerialize"] or phase["compute_dtype"] != "float32"):
        yield "note", "rematerialize and bfloat16 save memory on accelerators, none on a processor"


def activation_bytes(classifier: MultiExitClassifier, objective: Any, images: int) -> int:
    """Bytes that the forward pass of a step keeps for the backward pass; traces, computes nothing.

    Args:
      classifier: left as it is.
      objective: of the phase.
      images: per device.
    """
    network = nnx.clone(classifier)
    objective.set_mode(network)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def kept(params: nnx.State, rest: nnx.State, pixels: jax.Array, labels: jax.Array) -> Any:
        def loss(params: nnx.State) -> jax.Array:
            return objective(nnx.merge(graphdef, params, rest, copy=True), pixels, labels)[0]

        return jax.vjp(loss, params)[1]

    def kept_of(count: int) -> int:
        pixels = jax.ShapeDtypeStruct((count, *classifier.image_shape), jnp.float32)
        labels = jax.ShapeDtypeStruct((count,), jnp.int32)
        return _bytes(jax.eval_shape(kept, params, rest, pixels, labels))

    # Parameters, or what they were cast to, are kept as well, and counted elsewhere.
    return kept_of(2 * images) - kept_of(images)


def _bytes(tree: Any) -> int:
    return int(sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _size(count: float) -> str:
    power = min(int(np.log10(max(count, 1))) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
