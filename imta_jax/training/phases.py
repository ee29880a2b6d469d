"""The two phases of training (paper Sec. 4): trained parameters, initial network and loss."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx

from imta_jax.config import PHASES, PhaseConfig, RunConfig
from imta_jax.data import Dataset, steps_per_epoch
from imta_jax.distributed import PARAMETER_AXIS, parameter_shards_hint
from imta_jax.errors import MissingFileError
from imta_jax.models import MultiExitClassifier, resolve_model_config
from imta_jax.training.batch_statistics import batch_padding_hint
from imta_jax.training.callbacks import Callback, LoggedRun, default_callbacks
from imta_jax.training.checkpoint_reading import (
    check_same_epoch,
    has_checkpoint,
    has_readable_checkpoint,
    has_readable_epoch,
    read_meta,
    restore_model,
)
from imta_jax.training.early_stopping import EARLY_STOPPING
from imta_jax.training.example_logits import ExampleLogits
from imta_jax.training.feed import training_feed
from imta_jax.training.init_from import load_initial_parameters
from imta_jax.training.loop import TrainingLoop
from imta_jax.training.mixed_regime import LastExitObjective
from imta_jax.training.network_record import network_record
from imta_jax.training.objectives import Objective
from imta_jax.training.optimizer import phase_optimizer
from imta_jax.training.recipe import RECIPE, recipe_record
from imta_jax.training.schedules import epochs_schedule
from imta_jax.training.setup import (
    Phase,
    assemble_phase,
    describe_parameters,
    mesh_of,
    new_phase_one,
    phase_parts,
    phase_settings,
)
from imta_jax.training.validation import make_validation

_log = logging.getLogger(__name__)

SAVED_EXECUTABLES = "compiled"  # Folder of steps that `--mode=plan --save` compiled for this run.


def train_phase_one(config: RunConfig, dataset: Dataset, workdir: Path) -> None:
    """Phase I: trains all parameters with gradient equilibrium. Resumes from checkpoints.

    The first `config.phase_one.last_exit_epochs` epochs train with the last exit's loss alone.

    Args:
      config: the run's config.
      dataset: images to train on and to validate with.
      workdir: the run's folder; checkpoints and metrics go to its `phase_one` folder.

    Raises:
      InputError: the config does not fit the data or the devices; nothing is computed then.
      NonFiniteLossError: training diverged.
      Interrupted: training was preempted and is saved.
    """
    folder, first_epochs = workdir / "phase_one", config.phase_one.last_exit_epochs
    if first_epochs and not has_readable_epoch(folder, first_epochs):
        classifier = _initial_phase_one(config, dataset, folder)
        _, _, trainable = phase_parts("phase_one", config, classifier)
        settings = config.phase_one
        train_phase(
            "phase_one",
            config,
            dataset,
            folder,
            classifier,
            LastExitObjective(
                settings.rematerialize,
                settings.rematerialize_layers,
                settings.label_smoothing,
            ),
            trainable,
            epochs=range(first_epochs),
        )
    classifier = _initial_phase_one(config, dataset, folder)
    parts = phase_parts("phase_one", config, classifier)
    joint = range(first_epochs, config.phase_one.total_epochs)
    train_phase("phase_one", config, dataset, folder, *parts, epochs=joint)


def _initial_phase_one(config: RunConfig, dataset: Dataset, folder: Path) -> MultiExitClassifier:
    """The untrained network of phase I, with the arrays of `config.phase_one.init_from`."""
    classifier = new_phase_one(config, dataset)
    load_initial_parameters(classifier, config.phase_one, folder)
    return classifier


def train_phase_two(
    config: RunConfig, dataset: Dataset, workdir: Path, folder: Path | None = None
) -> None:
    """Phase II: trains the heads with collaboration and distillation, on phase I's network.

    Args:
      config: the run's config.
      dataset: images to train on and to validate with.
      workdir: the run's folder, with a trained phase I or a checkpoint of phase II.
      folder: where checkpoints and metrics go; None for the `phase_two` folder of `workdir`.

    Raises:
      MissingFileError: neither phase has a checkpoint.
      InputError, NonFiniteLossError, Interrupted: see `train_phase_one`.
    """
    folder = folder or workdir / "phase_two"
    if has_readable_epoch(folder, 1):  # It has the parameters of phase I too.
        start = new_phase_one(config, dataset)
    else:
        start = trained_phase_one(config, dataset, workdir)
    parts = phase_parts("phase_two", config, start)
    train_phase("phase_two", config, dataset, folder, *parts)


def trained_phase_one(config: RunConfig, dataset: Dataset, workdir: Path) -> MultiExitClassifier:
    """The classifier that phase II starts from: checkpoint `config.phase_two.from_checkpoint`.

    Raises:
      MissingFileError: phase I has no checkpoint.
    """
    classifier = new_phase_one(config, dataset)
    folder = workdir / "phase_one"
    check_same_epoch(restore_model(classifier, folder, config.phase_two.from_checkpoint), folder)
    return classifier


def train_phase(
    name: str,
    config: RunConfig,
    dataset: Dataset,
    folder: Path,
    classifier: MultiExitClassifier,
    objective: Objective,
    trainable: Any,
    meta: Mapping[str, Any] | None = None,
    epochs: range | None = None,
) -> None:
    """Assembles a phase and runs the training loop. Resumes from the folder's checkpoints.

    Args:
      name: "phase_one" or "phase_two"; selects the section of the config.
      config: the run's config.
      dataset: images to train on and to validate with.
      folder: where checkpoints and metrics go.
      classifier: the initial network.
      objective: the loss.
      trainable: NNX filter of the trained variables; all others are frozen.
      meta: entries of the checkpoints' `meta` in addition to those of `network_meta`.
      epochs: indices, from 0, of the epochs to train, which the learning-rate schedule spans; the
        epochs before them must be trained already. None trains all epochs.

    Raises:
      NonFiniteLossError: training diverged.
      Interrupted: training was preempted and is saved.
    """
    settings = phase_settings(config, name)
    epochs = epochs or range(settings.total_epochs)
    steps = steps_per_epoch(len(dataset.splits["train"]), settings.batch_size)
    learning_rate = epochs_schedule(settings, epochs, steps)
    optimizer = phase_optimizer(settings, learning_rate)
    pixels = {"mean": dataset.mean, "std": dataset.std}
    phase = assemble_phase(
        name, config, classifier, objective, trainable, optimizer, **pixels, mesh=mesh_of(config)
    )
    state = phase.new_state()
    feed = training_feed(config, name, dataset, phase, state, _saved_executable(folder, name))
    schedule = f"{name}: {epochs.stop} epochs of {steps} steps, input: {feed.name}"
    _log_start(schedule, phase, settings)
    meta = {**network_meta(config, dataset, name, phase), **(meta or {})}
    TrainingLoop(
        phase=name,
        total_epochs=epochs.stop,
        steps_per_epoch=steps,
        batch_size=settings.batch_size,
        feed=feed,
        validate=make_validation(config, dataset, phase.graphdef, phase.mesh),
        learning_rate=learning_rate,
        check_every_steps=config.log.check_every_steps,
        callbacks=_callbacks(config, folder, phase, meta, learning_rate, epochs),
    ).run(state)


def _callbacks(
    config: RunConfig,
    folder: Path,
    phase: Phase,
    meta: Mapping[str, Any],
    learning_rate: optax.Schedule,
    epochs: range,
) -> list[Callback]:
    return default_callbacks(
        folder,
        meta=meta,
        log=config.log,
        checkpoint=config.checkpoint,
        learning_rate=learning_rate,
        run=LoggedRun(meta["phase"], folder, config.to_dict()),
        example_logits=ExampleLogits(phase.graphdef, phase.mesh, meta),
        patience_epochs=_patience(phase_settings(config, meta["phase"]), epochs),
    )


def _log_start(schedule: str, phase: Phase, settings: PhaseConfig) -> None:
    """Logs the schedule and the number of parameters; warns of wasteful shards or batch sizes."""
    trained, frozen = nnx.filter_state(phase.variables, phase.trainable, nnx.Param)
    _log.info("%s, %s", schedule, describe_parameters(trained, frozen))
    shards = phase.mesh.shape[PARAMETER_AXIS]
    if hint := parameter_shards_hint(shards, sum(x.nbytes for x in jax.tree.leaves(trained))):
        _log.warning("%s", hint)
    hint = batch_padding_hint(settings, phase.mesh.size)
    if hint and phase.mesh.devices.flat[0].platform == "tpu":
        _log.warning("%s", hint)


def _saved_executable(folder: Path, name: str) -> Path:
    """Where `--mode=plan --save` saves the step of a phase with this folder of checkpoints."""
    return folder.parent / SAVED_EXECUTABLES / name


def _patience(settings: PhaseConfig, epochs: range) -> int:
    """Epochs without improvement after which training stops; 0 unless the phase ends here."""
    return settings.early_stopping_epochs if epochs.stop == settings.total_epochs else 0


def network_meta(config: RunConfig, dataset: Dataset, name: str, phase: Phase) -> dict[str, Any]:
    """The `meta` of a checkpoint, from which the network is rebuilt without config and dataset."""
    heads = config.heads
    options = {"options": heads.options} if heads.options else {}
    return {
        "phase": name,
        "seed": config.seed,
        RECIPE: recipe_record(phase_settings(config, name)),
        "model": resolve_model_config(config.model),
        "heads": {
            "transfer": heads.transfer,
            "stop_gradient": heads.stop_gradient,
            "start": heads.start,
            **options,
        },
        "network": network_record(phase.classifier, phase.variables, config.model, heads),
        "dataset": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "evaluation_transform": dataset.evaluation_transform.to_dict(),
    }


def phase_is_finished(config: RunConfig, workdir: Path, phase: str) -> bool:
    """Whether the last epoch of a phase has a readable checkpoint in the run's folder."""
    return folder_is_finished(config, phase, workdir / phase)


def folder_is_finished(config: RunConfig, phase: str, folder: Path) -> bool:
    """Like `phase_is_finished`, for any folder of checkpoints. A phase of 0 epochs is finished."""
    settings = phase_settings(config, phase)
    epochs, may_stop = settings.total_epochs, settings.early_stopping_epochs > 0
    return epochs == 0 or has_readable_epoch(folder, epochs) or (may_stop and _has_stopped(folder))


def _has_stopped(folder: Path) -> bool:
    """Whether the newest readable checkpoint of a phase's folder ended the phase early."""
    if not has_readable_checkpoint(folder):
        return False
    return read_meta(folder).get(EARLY_STOPPING, {}).get("stopped", False)


def check_trained(config: RunConfig, workdir: Path, phase: str) -> None:
    """Raises a MissingFileError that names the fix unless a phase has a readable checkpoint."""
    folder = workdir / phase
    if has_checkpoint(folder):
        read_meta(folder)  # raises, with the reasons, if no checkpoint can be read
        return
    if phase_settings(config, phase).total_epochs == 0:
        fix = f"config.{phase}.total_epochs is 0; expected at least 1"
    else:
        modes = ", then ".join(f"--mode={name}" for name in PHASES[: PHASES.index(phase) + 1])
        command = "python launch.py --config=... --workdir=..."
        fix = f"train it first: {command} without --mode, or with {modes}"
    raise MissingFileError(f"no checkpoint in {folder}; {fix}")


def why_unfinished(config: RunConfig, workdir: Path, phase: str) -> str:
    """The reason why a phase is trained and where it starts, for the log."""
    folder, epochs = workdir / phase, phase_settings(config, phase).total_epochs
    saved = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
    if not saved:
        return f"no checkpoint of an epoch in {folder}; training starts in epoch 1 of {epochs}"
    if saved[-1] >= epochs:
        return f"checkpoint {saved[-1]} in {folder} cannot be read; training resumes before it"
    return f"the newest checkpoint in {folder} is of epoch {saved[-1]} of {epochs}"
