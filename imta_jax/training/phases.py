"""The two phases of training (paper Sec. 4): what each trains, from where, and with which loss."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from imta_jax.data import Dataset, HostPipeline, Shard, eval_batches, steps_per_epoch
from imta_jax.distributed import check_batch_size, data_mesh, place_batch, process_shard
from imta_jax.errors import unknown_name
from imta_jax.models import (
    MultiExitClassifier,
    build_classifier,
    check_heads,
    check_model,
    resolve_model_config,
    with_collaborative_heads,
)
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.checkpoints import check_which, has_readable_epoch, restore_model
from imta_jax.training.feed import PHASES, check_feed, training_feed
from imta_jax.training.gate_objective import GateSupervisedObjective
from imta_jax.training.interval import IntervalLines
from imta_jax.training.loop import EpochLoop
from imta_jax.training.objectives import (
    ALL_PARAMETERS,
    HEAD_PARAMETERS,
    Objective,
    PhaseOneObjective,
    PhaseTwoObjective,
)
from imta_jax.training.optimizer import sgd, step_schedule
from imta_jax.training.profiling import StepProfiler, check_profile_steps
from imta_jax.training.state import TrainState, create_state
from imta_jax.training.step import make_eval_step, train_step

_log = logging.getLogger(__name__)

Chosen = TypeVar("Chosen", bound=PhaseOneObjective | PhaseTwoObjective)
# Types of the backbone's maps while a phase trains.
COMPUTE_DTYPES = ("float32", "bfloat16")


def new_phase_one(config: Mapping[str, Any], dataset: Dataset) -> MultiExitClassifier:
    """The untrained phase-I classifier of a config, reproducible from `config.seed`."""
    return build_classifier(
        config["model"],
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        rngs=nnx.Rngs(config["seed"]),
    )


def new_phase_two(
    config: Mapping[str, Any], classifier: MultiExitClassifier
) -> MultiExitClassifier:
    """The phase-II classifier of a config on a phase-I one, its heads not yet trained."""
    return with_collaborative_heads(
        classifier,
        _heads_config(config),
        num_classes=classifier.num_classes,
        rngs=nnx.Rngs(config["seed"] + 1),
    )


def _heads_config(config: Mapping[str, Any]) -> dict[str, Any]:
    phase = config["phase_two"]
    heads = {name: phase[name] for name in ("transfer", "stop_gradient", "start")}
    return {**heads, "initialization": config["model"].get("initialization") or "he_normal"}


def phase_one_objective(config: Mapping[str, Any]) -> PhaseOneObjective:
    """Reads `config.phase_one`, and from `config.model` whether a gate is supervised."""
    weight = resolve_model_config(config["model"]).get("gate_weight", 0.0)
    if weight:
        return _objective(GateSupervisedObjective, config["phase_one"], gate_weight=weight)
    return _objective(PhaseOneObjective, config["phase_one"])


def phase_two_objective(config: Mapping[str, Any]) -> PhaseTwoObjective:
    """Reads `config.phase_two`."""
    return _objective(PhaseTwoObjective, config["phase_two"])


def _objective(kind: type[Chosen], phase: Mapping[str, Any], **given: float) -> Chosen:
    """An objective of what is given and of the phase's fields with its other attributes' names."""
    names = {field.name for field in dataclasses.fields(kind)} - given.keys()
    return kind(**given, **{name: phase[name] for name in names})


def train_phase_one(config: Mapping[str, Any], dataset: Dataset, workdir: Path) -> None:
    """Phase I: everything trains, with gradient equilibrium; goes on where it was interrupted.

    Args:
      config: a whole config (see configs/common.py).
      dataset: to train on and validate with.
      workdir: checkpoints and metrics go to its `phase_one` folder.

    Raises:
      ValueError: whatever of the config does not fit, before any compute is spent.
      NonFiniteLossError: training diverged.
    """
    objective = phase_one_objective(config)
    classifier = new_phase_one(config, dataset)
    folder = workdir / "phase_one"
    train_phase("phase_one", config, dataset, folder, classifier, objective, ALL_PARAMETERS)


def train_phase_two(
    config: Mapping[str, Any], dataset: Dataset, workdir: Path, folder: Path | None = None
) -> None:
    """Phase II: the heads alone train, with collaboration and distillation, on phase I's network.

    Args and errors as in `train_phase_one`; a FileNotFoundError where phase I has not run. A
    `folder` takes the checkpoints and metrics elsewhere than to the `phase_two` of `workdir`.
    """
    objective = phase_two_objective(config)
    classifier = new_phase_two(config, trained_phase_one(config, dataset, workdir))
    folder = folder or workdir / "phase_two"
    train_phase("phase_two", config, dataset, folder, classifier, objective, HEAD_PARAMETERS)


def trained_phase_one(
    config: Mapping[str, Any], dataset: Dataset, workdir: Path
) -> MultiExitClassifier:
    """The classifier that phase II starts from, `config.phase_two.from_checkpoint` of phase I.

    Raises:
      FileNotFoundError: phase I has not run.
    """
    classifier = new_phase_one(config, dataset)
    restore_model(classifier, workdir / "phase_one", config["phase_two"]["from_checkpoint"])
    return classifier


def check_training_config(config: Mapping[str, Any]) -> None:
    """Checks all that two phases and the evaluation will ask of a config; computes nothing.

    Raises:
      ValueError: names the field, what it holds and what fits.
    """
    if config["seed"] < 0:
        raise ValueError(f"config.seed must not be negative; found {config['seed']}")
    if config["log"]["check_every_steps"] < 1:
        found = config["log"]["check_every_steps"]
        raise ValueError(f"config.log.check_every_steps must be at least 1; found {found}")
    if config["checkpoint"]["every_steps"] < 0:
        found = config["checkpoint"]["every_steps"]
        raise ValueError(f"config.checkpoint.every_steps must not be negative; found {found}")
    WriteErrorPolicy(config["checkpoint"]["on_write_error"])
    check_profile_steps(config["log"]["profile_steps"])
    phase_one_objective(config)
    phase_two_objective(config)
    check_which("config.phase_two.from_checkpoint", config["phase_two"]["from_checkpoint"])
    for name in PHASES:
        phase = config[name]
        if phase["total_epochs"] < 0 or (name == "phase_one" and phase["total_epochs"] == 0):
            least = "at least 1" if name == "phase_one" else "0 (left out) or more"
            raise ValueError(
                f"config.{name}.total_epochs must be {least}; found {phase['total_epochs']}"
            )
        if phase["compute_dtype"] not in COMPUTE_DTYPES:
            found = phase["compute_dtype"]
            raise unknown_name(f"config.{name}.compute_dtype", found, COMPUTE_DTYPES)
        check_batch(config, name)
        _optimizer(phase, _schedule(phase, steps=1))
    evaluation_batch_size(config, mesh_of(config))
    check_model(config["model"])
    check_heads(_heads_config(config))


def check_training_data(config: Mapping[str, Any], dataset: Dataset) -> None:
    """Checks what only shows with the data at hand, for both phases; computes nothing.

    Raises:
      ValueError: no full batch, a negative seed or padding, an unknown pipeline.
      ModuleNotFoundError: a pipeline whose library is not installed.
    """
    for name in PHASES:
        if config[name]["total_epochs"] > 0:
            check_feed(config, name, dataset, mesh_of(config))


def phase_is_finished(config: Mapping[str, Any], workdir: Path, phase: str) -> bool:
    """Whether the phase's last epoch has its checkpoint (a phase of no epochs is finished)."""
    return folder_is_finished(config, phase, workdir / phase)


def folder_is_finished(config: Mapping[str, Any], phase: str, folder: Path) -> bool:
    """As `phase_is_finished`, for the folder of a phase."""
    epochs = config[phase]["total_epochs"]
    return epochs == 0 or has_readable_epoch(folder, epochs)


def train_phase(
    name: str,
    config: Mapping[str, Any],
    dataset: Dataset,
    folder: Path,
    classifier: MultiExitClassifier,
    objective: Objective,
    trainable: Any,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Puts state, step and loop together and runs them; goes on where it was interrupted.

    Args:
      name: "phase_one" or "phase_two", the part of the config that says how long and how fast.
      config: a whole config.
      dataset: to train on and validate with.
      folder: checkpoints and metrics go there.
      classifier: to start from.
      objective: what is minimised.
      trainable: an NNX filter; everything else is frozen.
      meta: more than `network_meta` for the checkpoints to say.

    Raises:
      NonFiniteLossError: training diverged.
    """
    phase, mesh, train = config[name], mesh_of(config), dataset.splits["train"]
    classifier.compute_dtype = jnp.dtype(phase["compute_dtype"])
    steps = steps_per_epoch(len(train), phase["batch_size"])
    schedule = _schedule(phase, steps * phase["total_epochs"])
    tx = _optimizer(phase, schedule)
    objective.set_mode(classifier)
    graphdef, state = create_state(classifier, trainable, tx, mesh)
    pixels, parts = {"mean": dataset.mean, "std": dataset.std}, phase["accumulate_parts"]
    step = train_step(graphdef, objective, trainable, tx, **pixels, mesh=mesh, parts=parts)
    feed = training_feed(config, name, dataset, step, mesh, state)
    epochs = phase["total_epochs"]
    _log.info("%s: %d epochs of %d steps, input: %s", name, epochs, steps, feed.name)
    EpochLoop(
        phase=name,
        folder=folder,
        total_epochs=phase["total_epochs"],
        steps_per_epoch=steps,
        batch_size=phase["batch_size"],
        feed=feed,
        validate=_validation(config, dataset, graphdef, mesh),
        learning_rate=schedule,
        meta={**network_meta(config, dataset, name), **(meta or {})},
        check_every_steps=config["log"]["check_every_steps"],
        save_every_steps=config["checkpoint"]["every_steps"],
        lines=IntervalLines(
            name, steps, epochs, phase["batch_size"], config["log"]["line_every_seconds"]
        ),
        profiler=StepProfiler(folder, config["log"]["profile_steps"]),
        write_errors=WriteErrorPolicy(config["checkpoint"]["on_write_error"]),
    ).run(state)


def _schedule(phase: Mapping[str, Any], steps: int) -> optax.Schedule:
    return step_schedule(
        phase["learning_rate"], phase["learning_rate_drops"], phase["drop_factor"], steps
    )


def _optimizer(phase: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return sgd(
        schedule,
        momentum=phase["momentum"],
        nesterov=phase["nesterov"],
        weight_decay=phase["weight_decay"],
    )


def _validation(
    config: Mapping[str, Any], dataset: Dataset, graphdef: nnx.GraphDef, mesh: Mesh
) -> Any:
    """Makes the loop's `validate`: mean loss and top-1 per exit over the validation images."""
    step = make_eval_step(graphdef, mean=dataset.mean, std=dataset.std, mesh=mesh)
    batch_size = evaluation_batch_size(config, mesh)
    split = dataset.splits["validation"]
    pipeline, host = config["data"]["pipeline"], HostPipeline.from_config(config["data"])

    def validate(state: TrainState) -> dict[str, np.ndarray]:
        batches = eval_batches(
            split,
            dataset.preprocessing,
            batch_size,
            shard=Shard(*process_shard()),
            pipeline=pipeline,
            host=host,
        )
        sums = [step(state.trainable, state.rest, place_batch(b, mesh)) for b in batches]
        total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(sums))
        return {
            "loss": total["loss"] / total["count"],
            "top1": 100 * total["correct"] / total["count"],
        }

    return validate


def mesh_of(config: Mapping[str, Any]) -> Mesh:
    """All devices, as `config.mesh` wants them."""
    return data_mesh(parameter_shards=config["mesh"]["parameter_shards"])


def check_batch(config: Mapping[str, Any], name: str) -> None:
    """Refuses a phase's batch that devices and parts do not divide."""
    phase = config[name]
    if phase["accumulate_parts"] < 1:
        found = phase["accumulate_parts"]
        raise ValueError(f"config.{name}.accumulate_parts must be at least 1; found {found}")
    field = f"config.{name}.batch_size"
    check_batch_size(phase["batch_size"], mesh_of(config), field, phase["accumulate_parts"])


def evaluation_batch_size(config: Mapping[str, Any], mesh: Mesh) -> int:
    """`config.evaluation.batch_size`, checked against the devices."""
    batch_size = config["evaluation"]["batch_size"]
    check_batch_size(batch_size, mesh, "config.evaluation.batch_size")
    return batch_size


def network_meta(config: Mapping[str, Any], dataset: Dataset, phase: str) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the network without the data."""
    heads = {name: config["phase_two"][name] for name in ("transfer", "stop_gradient", "start")}
    return {
        "phase": phase,
        "seed": config["seed"],
        "model": resolve_model_config(config["model"]),
        "heads": heads,
        "dataset": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
