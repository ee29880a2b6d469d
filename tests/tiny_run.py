"""A dataset and a config small enough to train whole runs in tests, and the steps for it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imta_jax.data import DatasetInfo
from imta_jax.models import MultiExitClassifier
from imta_jax.training.objectives import ALL_PARAMETERS, HEAD_PARAMETERS
from imta_jax.training.optimizer import sgd, step_schedule
from imta_jax.training.phases import (
    new_phase_one,
    new_phase_two,
    phase_one_objective,
    phase_two_objective,
)
from imta_jax.training.state import TrainState, create_state
from imta_jax.training.step import TrainStep, on_batches, train_step
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
    source: Path, workdir: Path, cache: Path, *more: str, devices: int | None = None
) -> dict[str, Any]:
    """Arguments for `subprocess`: launch.py runs the tiny network, 2 + 1 epochs unless `more` says.

    Args:
      source: from `write_dataset`.
      workdir: the run's.
      cache: where compiled programs are kept.
      more: flags, of which the last of a name counts.
      devices: how many the processor counts as; one by default.
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
    surroundings = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    surroundings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if devices is not None:
        surroundings["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return {"args": arguments, "cwd": ROOT, "env": surroundings, "text": True}


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


class Phase(NamedTuple):
    """One phase, ready to be stepped through by hand."""

    classifier: MultiExitClassifier
    objective: Any
    trainable: Any
    tx: Any
    graphdef: nnx.GraphDef
    step: TrainStep
    mesh: Mesh

    def start(self) -> TrainState:
        """A fresh state; a step donates the one it gets."""
        return create_state(self.classifier, self.trainable, self.tx, self.mesh)[1]


def make_phase(name: str, mesh: Mesh, preset: str = "paper", **changes: Any) -> Phase:
    """Puts a phase of the tiny config together as `training.phases` does."""
    config = tiny_config("", preset, **changes)
    classifier, objective, trainable = new_phase_one(config, INFO), None, ALL_PARAMETERS
    if name == "phase_one":
        objective = phase_one_objective(config)
    else:
        classifier, trainable = new_phase_two(config, classifier), HEAD_PARAMETERS
        objective = phase_two_objective(config)
    phase = config[name]
    tx = sgd(
        step_schedule(phase.learning_rate, phase.learning_rate_drops, phase.drop_factor, 1000),
        momentum=phase.momentum,
        nesterov=phase.nesterov,
        weight_decay=phase.weight_decay,
    )
    objective.set_mode(classifier)
    graphdef, _ = create_state(classifier, trainable, tx, mesh)
    step = on_batches(train_step(graphdef, objective, trainable, tx, **PIXELS, mesh=mesh), mesh)
    return Phase(classifier, objective, trainable, tx, graphdef, step, mesh)


def draw_batch(count: int, seed: int) -> Batch:
    """A batch of such images, without padding."""
    images, labels = draw_images(count, seed)
    index = np.arange(count, dtype=np.int32)
    return Batch(images, labels.astype(np.int32), np.ones(count, bool), index)


def assert_same(found: Any, expected: Any) -> None:
    """Two pytrees of arrays are equal bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def to_host(tree: Any) -> Any:
    """Copies a pytree to NumPy, out of reach of a step that donates."""
    return jax.tree.map(np.array, tree)


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in `folder`, so that a second run of the same network needs none."""
    changes = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    _configure(changes)
    yield
    _configure(before)


def _configure(changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks at the settings only once
