"""Training: objectives, optimizer, state, steps, the loop with its callbacks, and checkpoints."""

from imta_jax.config import PHASES
from imta_jax.runtime.executable_cache import prefetch_executable
from imta_jax.runtime.preemption import EXIT_CODE, Interrupted
from imta_jax.training.callbacks import Callback, NonFiniteLossError, Progress
from imta_jax.training.checkpoint_reading import check_which, read_meta, restore_model
from imta_jax.training.checkpoints import AnotherNetworkError
from imta_jax.training.checks import check_training_config, check_training_data
from imta_jax.training.feed import executable_label, training_pipeline
from imta_jax.training.loading import last_phase, load_classifier
from imta_jax.training.loop import TrainingLoop
from imta_jax.training.objectives import PhaseOneObjective, PhaseTwoObjective
from imta_jax.training.phases import (
    phase_is_finished,
    train_phase_one,
    train_phase_two,
)
from imta_jax.training.setup import mesh_of, new_phase_one, new_phase_two
from imta_jax.training.validation import evaluation_batch_size

__all__ = [
    "EXIT_CODE",
    "PHASES",
    "AnotherNetworkError",
    "Callback",
    "Interrupted",
    "NonFiniteLossError",
    "PhaseOneObjective",
    "PhaseTwoObjective",
    "Progress",
    "TrainingLoop",
    "check_training_config",
    "check_training_data",
    "check_which",
    "evaluation_batch_size",
    "executable_label",
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
