"""Fields of a phase that have another value than their default and no effect, for the log."""

import dataclasses
from collections.abc import Callable

from imta_jax.config import PHASES, PhaseConfig, PhaseTwoConfig, RunConfig
from imta_jax.runtime.registry import OBJECTIVES, accepted_keywords

_DISTILLATION = ("alpha", "temperature", "temperature_squared", "reduction", "last_exit")


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Fields that have an effect with one value of another field, or with some of its values."""

    field: str
    names: tuple[str, ...]
    has_effect: Callable[[object], bool]


_CHOICES = (
    _Choice("optimizer", ("momentum", "nesterov"), lambda value: value == "sgd"),
    _Choice("schedule", ("learning_rate_drops", "drop_factor"), lambda value: value == "steps"),
    _Choice("randaugment_operations", ("randaugment_magnitude",), bool),
    _Choice("detach", ("detach_fraction", "detach_exit"), lambda value: value != "off"),
)


def unused_fields(config: RunConfig) -> list[str]:
    """One sentence per choice, for example an optimizer, that ignores fields which were set.

    Fields that have their default values are not listed. A phase without epochs is ignored.
    """
    notes = []
    for name in PHASES:
        phase: PhaseConfig = getattr(config, name)
        if not phase.total_epochs:
            continue
        for choice in _CHOICES:
            value = getattr(phase, choice.field, None)
            if value is not None and not choice.has_effect(value):
                notes += _note(phase, choice.names, choice.field)
        if isinstance(phase, PhaseTwoConfig) and phase.objective != "one_for_all":
            notes += _note(phase, _ignored_by_loss(phase.objective), "objective")
    return notes


def _ignored_by_loss(name: str) -> tuple[str, ...]:
    """Fields of the distillation that a loss does not get; none if it accepts any."""
    accepted = accepted_keywords(OBJECTIVES.get(name))
    if accepted is None:
        return ()
    teacher = () if "teacher_logits" in accepted else ("teacher",)
    return (*(field for field in _DISTILLATION if field not in accepted), *teacher)


def _note(phase: PhaseConfig, names: tuple[str, ...], field: str) -> list[str]:
    """The sentence for the fields that differ from their defaults, if any do."""
    defaults = phase.defaults()
    changed = [name for name in names if getattr(phase, name, None) != defaults.get(name)]
    if not changed:
        return []
    values = ", ".join(f"{name}={getattr(phase, name)!r}" for name in changed)
    return [f"{phase.section}: no effect with {field}={getattr(phase, field)!r}: {values}"]
