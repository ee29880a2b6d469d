"""Techniques that do not work together, reported before anything is trained."""

from imta_jax.config import PHASES, PhaseConfig, RunConfig
from imta_jax.errors import InputError
from imta_jax.models import gate_weight_of
from imta_jax.runtime.config_fields import check_expression

_BOOSTED = "boosted"


def check_combinations(config: RunConfig) -> None:
    """Checks that the techniques of a config work together.

    Raises:
      InputError: names the fields of two techniques that do not.
    """
    _check_gate(config)
    _check_init_from_map(config)
    for name in PHASES:
        _check_mixing(getattr(config, name))
    if config.model.heads == _BOOSTED:
        _check_boosted_heads(config)
    if config.phase_one.sample_weights == "learned":
        _check_learned_weights(config)


def _check_init_from_map(config: RunConfig) -> None:
    phase = config.phase_one
    for expression, _ in phase.init_from_map:
        check_expression(expression, "config.phase_one.init_from_map")
    if phase.init_from_map and not phase.init_from:
        raise InputError(
            "config.phase_one.init_from_map must be () without config.phase_one.init_from; found "
            f"{phase.init_from_map}"
        )


def _check_learned_weights(config: RunConfig) -> None:
    """The weights replace the sum of cross-entropies, of one half of a batch at a time."""
    phase, defaults = config.phase_one, type(config.phase_one).defaults()
    required = {
        "accumulate_parts": 1,
        "optimizer": defaults["optimizer"],
        "gradient_clip_norm": 0.0,
        "exit_losses": "sum",
        "last_exit_epochs": 0,
        "objective": defaults["objective"],
        "objective_options": {},
        "label_smoothing": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
    }
    for name, value in required.items():
        if getattr(phase, name) != value:
            raise InputError(
                f"config.phase_one.{name} must be {value!r} with config.phase_one.sample_weights="
                f'"learned"; found {getattr(phase, name)!r}'
            )


def _check_gate(config: RunConfig) -> None:
    """A network with a gate has one exit and a loss of its own."""
    weight, phase = gate_weight_of(config.model), config.phase_one
    if not weight:
        return
    fields = ("last_exit_epochs", "objective", "sample_weights", "mixup_alpha", "cutmix_alpha")
    for name in fields:
        needed, value = phase.defaults()[name], getattr(phase, name)
        if value != needed:
            raise InputError(
                f"config.phase_one.{name} must be {needed!r} for a network with a gate "
                f"(config.model.gate_weight={weight:g}), which has one exit; found {value!r}"
            )


def _check_mixing(phase: PhaseConfig) -> None:
    """Mixup and cutmix need another image in the batch."""
    if phase.mixes_labels and phase.total_epochs > 0 and phase.batch_size < 2:
        raise InputError(
            f"{phase.section}.batch_size must be at least 2 with mixup_alpha or cutmix_alpha, "
            f"which mix two images of a batch; found {phase.batch_size}"
        )


def _check_boosted_heads(config: RunConfig) -> None:
    if config.phase_one.last_exit_epochs:
        raise InputError(
            'config.phase_one.last_exit_epochs must be 0 with config.model.heads="boosted": the '
            "last exit would correct exits that are not trained yet; found "
            f"{config.phase_one.last_exit_epochs}"
        )
    phase = config.phase_two
    if phase.total_epochs == 0 or phase.start == "fresh":
        return
    heads = (config.model.heads, config.model.heads_options)
    if (phase.transfer, phase.transfer_options) != heads:
        raise InputError(
            "config.phase_two.transfer and transfer_options must equal config.model.heads and "
            f"heads_options, {heads[0]!r} and {heads[1]}, with config.phase_two.start="
            f'"phase_one": boosted layers correct each other; found {phase.transfer!r} and '
            f'{phase.transfer_options}. Set config.phase_two.start="fresh" for other heads, or '
            "config.phase_two.total_epochs=0"
        )
