"""Training: objectives, optimizer, state, steps, the loop with its callbacks, and checkpoints.

Names are imported at first use: `imta_jax.pretrained` needs neither Orbax nor the training loop.
"""

from imta_jax.runtime.lazy_imports import lazy_imports

_BY_MODULE = {
    "AnotherNetworkError": "imta_jax.training.network_arrays",
    "Callback": "imta_jax.training.callbacks",
    "EXIT_CODE": "imta_jax.runtime.preemption",
    "Interrupted": "imta_jax.runtime.preemption",
    "NonFiniteLossError": "imta_jax.training.callbacks",
    "PHASES": "imta_jax.config",
    "PhaseOneObjective": "imta_jax.training.objectives",
    "PhaseTwoObjective": "imta_jax.training.objectives",
    "Progress": "imta_jax.training.callbacks",
    "TrainingLoop": "imta_jax.training.loop",
    "check_training_config": "imta_jax.training.checks",
    "check_training_data": "imta_jax.training.checks",
    "check_which": "imta_jax.training.checkpoint_reading",
    "evaluation_batch_size": "imta_jax.training.validation",
    "executable_label": "imta_jax.training.feed",
    "last_phase": "imta_jax.training.loading",
    "load_classifier": "imta_jax.training.loading",
    "mesh_of": "imta_jax.training.setup",
    "new_phase_one": "imta_jax.training.setup",
    "new_phase_two": "imta_jax.training.setup",
    "phase_is_finished": "imta_jax.training.phases",
    "prefetch_executable": "imta_jax.runtime.executable_cache",
    "read_meta": "imta_jax.training.checkpoint_reading",
    "restore_model": "imta_jax.training.checkpoint_reading",
    "train_phase_one": "imta_jax.training.phases",
    "train_phase_two": "imta_jax.training.phases",
    "training_pipeline": "imta_jax.training.feed",
}

__all__ = [*_BY_MODULE]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
