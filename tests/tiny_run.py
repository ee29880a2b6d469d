"""A dataset and a config small enough to train whole runs in tests, and the steps for it."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compile_flags
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imta_jax.config import RunConfig
from imta_jax.data import DatasetInfo
from imta_jax.distributed import place_batch
from imta_jax.models import Backbone, MultiExitClassifier
from imta_jax.models.classifier import Tap
from imta_jax.training.optimizer import phase_optimizer
from imta_jax.training.schedules import phase_schedule
from imta_jax.training.setup import (
    Phase,
    assemble_phase,
    new_phase_one,
    phase_parts,
    phase_settings,
)
from imta_jax.training.state import named_arrays
from imta_jax.training.step import jit_batch_step
from imta_jax.types import Batch

ROOT = Path(__file__).parent.parent
NETWORK = {
    "preset": "quickstart",
    "num_exits": 2,
    "channels": 4,
    "growth_rate": 2,
    "growth_factors": (1, 2),
    "bottleneck_factors": (1, 2),
}
CLASSES, TRAIN_IMAGES, TEST_IMAGES = 3, 72, 21
PIXELS = {"mean": (0.4,), "std": (0.25,)}


def draw_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 16, 16, 1] and labels [N]; the class is a brighter third, under noise."""
    labels = np.arange(count) % CLASSES
    images = np.random.default_rng(seed).integers(0, 160, (count, 16, 16, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 5] += 80
    return images, labels


def write_dataset(path: Path) -> Path:
    """Writes such images as an .npz that `config.data.source` may name."""
    train, test = draw_images(TRAIN_IMAGES, 0), draw_images(TEST_IMAGES, 1)
    np.savez(
        path,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )
    return path


def launch_command(
    source: Path, workdir: Path, cache: Path, *more: str, devices: int = 1
) -> dict[str, Any]:
    """Arguments for `subprocess`: launch.py runs the tiny network, 2 + 1 epochs unless `more` says.

    Args:
      source: path that `write_dataset` returned.
      workdir: the run's.
      cache: where compiled programs are kept.
      more: flags, of which the last of a name counts.
      devices: number of virtual CPU devices.
    """
    network = [f"--config.model.{name}={value}" for name, value in NETWORK.items()]
    arguments = [
        sys.executable,
        "launch.py",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--compilation_cache={cache}",
        *(argument.replace(" ", "") for argument in network),
        f"--config.data.source={source}",
        "--config.data.validation_examples=24",
        "--config.phase_one.total_epochs=2",
        "--config.phase_one.batch_size=16",
        "--config.phase_two.total_epochs=1",
        "--config.phase_two.batch_size=16",
        "--config.evaluation.batch_size=16",
        *more,
    ]
    flags = {
        "XLA_FLAGS": compile_flags.with_devices(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return {"args": arguments, "cwd": ROOT, "env": os.environ | flags, "text": True}


def tiny_config(source: Path | str, preset: str = "paper", **changes: Any) -> ConfigDict:
    """The quickstart's config on that dataset, 3 + 2 epochs of 3 steps; `a__b=1` sets `a.b`."""
    from configs import quickstart

    config = quickstart.get_config(preset)
    config.model.update(NETWORK)
    config.data.update(source=str(source), validation_examples=24, pipeline="numpy", crop_padding=2)
    config.phase_one.update(total_epochs=3, batch_size=16, learning_rate=0.05)
    config.phase_two.update(total_epochs=2, batch_size=16, learning_rate=0.05)
    config.evaluation.update(batch_size=16, reported_budgets=(0.7, 0.9))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


INFO = DatasetInfo("tiny", CLASSES, (16, 16, 1))


def run_config(source: Path | str, preset: str = "paper", **changes: Any) -> RunConfig:
    """`tiny_config`, parsed."""
    return RunConfig.from_mapping(tiny_config(source, preset, **changes))


def make_phase(name: str, mesh: Mesh, preset: str = "paper", **changes: Any) -> Phase:
    """A phase of the tiny config with a compiled step, which donates the state that it gets."""
    config = run_config("unused.npz", preset, **changes)
    settings = phase_settings(config, name)
    optimizer = phase_optimizer(settings, phase_schedule(settings, total_steps=1000))
    classifier = new_phase_one(config, INFO)
    phase = assemble_phase(
        name, config, *phase_parts(name, config, classifier), optimizer, **PIXELS, mesh=mesh
    )
    return dataclasses.replace(phase, step=jit_batch_step(phase.step, mesh))


def backbone_features(
    backbone: Backbone, images: jax.Array, tap: Tap | None = None
) -> tuple[jax.Array, ...]:
    """Pooled features of all exits, in the backbone's mode and without heads."""
    network = MultiExitClassifier(
        backbone,
        lambda i, features, carry: (features, carry),
        num_classes=2,
        image_shape=images.shape[1:],
    )
    return network.features(images, tap=tap)


def draw_batch(count: int, seed: int) -> Batch:
    """A batch of such images, without padding."""
    images, labels = draw_images(count, seed)
    index = np.arange(count, dtype=np.int32)
    return Batch(images, labels.astype(np.int32), np.ones(count, bool), index)


def arrays_around_steps(phase: Phase, batches: list[Batch]) -> tuple[dict, dict]:
    """The named arrays of a new state, and those after a training step on each batch."""
    state = phase.new_state()
    before = to_host(named_arrays(state.trainable) | named_arrays(state.rest))
    for batch in batches:
        state, _ = phase.step(state, place_batch(batch, phase.mesh))
    return before, to_host(named_arrays(state.trainable) | named_arrays(state.rest))


def to_host(tree: Any) -> Any:
    """Copies a pytree to NumPy, out of reach of a step that donates."""
    return jax.tree.map(np.array, tree)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in `folder`, so that the same network compiles only once."""
    changes = {
        "jax_compilation_cache_dir": str(folder),
        # With a size limit, JAX locks the folder, so that processes can share it.
        "jax_compilation_cache_max_size": 2**30,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    _configure(changes)
    try:
        yield
    finally:
        _configure(before)


def _configure(changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks at the settings only once
