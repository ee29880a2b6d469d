"""Objectives, optimiser, state, steps, the loop, checkpoints and the two phases."""

from imta_jax.runtime.executable_cache import prefetch_executable
from imta_jax.runtime.preemption import EXIT_CODE, Interrupted, install_sigterm_handler
from imta_jax.training.checkpoints import (
    AnotherNetworkError,
    check_which,
    read_meta,
    restore_model,
)
from imta_jax.training.feed import executable_label, training_pipeline
from imta_jax.training.loop import EpochLoop, NonFiniteLossError
from imta_jax.training.objectives import PhaseOneObjective, PhaseTwoObjective
from imta_jax.training.phases import (
    PHASES,
    check_training_config,
    check_training_data,
    evaluation_batch_size,
    mesh_of,
    new_phase_one,
    new_phase_two,
    phase_is_finished,
    train_phase_one,
    train_phase_two,
)
from imta_jax.training.trained import last_phase, load_classifier

__all__ = [
    "EXIT_CODE",
    "PHASES",
    "AnotherNetworkError",
    "EpochLoop",
    "Interrupted",
    "NonFiniteLossError",
    "PhaseOneObjective",
    "PhaseTwoObjective",
    "check_training_config",
    "check_training_data",
    "check_which",
    "evaluation_batch_size",
    "executable_label",
    "install_sigterm_handler",
    "last_phase",
    "load_classifier",
    "mesh_of",
    "new_phase_one",
    "new_phase_two",
    "phase_is_finished",
    "prefetch_executable",
    "read_meta",
    "restore_model",
    "train_phase_one",
    "train_phase_two",
    "training_pipeline",
]
