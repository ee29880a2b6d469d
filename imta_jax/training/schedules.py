"""Learning-rate schedules: `steps` (the paper's), `cosine`, `linear`, and those of other packages.

    @imta_jax.register_schedule("inverse_sqrt")
    def inverse_sqrt(learning_rate, total_steps, *, offset_steps=100):
        return lambda step: learning_rate / jnp.sqrt(1 + step / offset_steps)

A factory gets the learning rate and the number of steps by name, and the options of
`config.PHASE.schedule_options`. Factories of Optax work by dotted path: see `RATE_NAMES` and
`STEPS_NAMES` for the names of these two parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imta_jax.config import PhaseConfig
from imta_jax.errors import InputError
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import SCHEDULES, accepted_keywords, register_schedule
from imta_jax.training.factories import call_with_options

# Names of the parameters of a factory. The first that it accepts is used.
RATE_NAMES = ("learning_rate", "peak_value", "init_value")
STEPS_NAMES = ("total_steps", "decay_steps", "transition_steps")
# Fields of a phase that a factory of this package gets by name.
_FIELDS = ("learning_rate_drops", "drop_factor")
_CHECKED_STEPS = 1000


def step_schedule(
    learning_rate: float, drops: Sequence[float], drop_factor: float, total_steps: int
) -> optax.Schedule:
    """A learning rate that is multiplied by `drop_factor` at fractions of the training.

    Args:
      learning_rate: the initial one.
      drops: fractions of `total_steps` in 0..1, for example (0.5, 0.75), the paper's for CIFAR.
      drop_factor: 0.1 in the paper.
      total_steps: steps of the phase.

    Raises:
      InputError: a drop or `drop_factor` outside 0..1, or a learning rate that is not above 0.
    """
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be above 0; found {learning_rate}")
    if not 0 < drop_factor <= 1:
        raise InputError(f"drop_factor must be above 0 and at most 1; found {drop_factor}")
    if any(not 0 <= drop <= 1 for drop in drops):
        raise InputError(
            f"learning_rate_drops must be fractions of the training in 0 to 1; found {drops}"
        )
    starts = np.array([0, *(round(drop * total_steps) for drop in drops)])
    factors = np.array([learning_rate, *(drop_factor for _ in drops)], np.float32)
    # Unlike a chain of scalars, XLA on CPU does not recompute a reduction for every parameter.
    return lambda step: jnp.prod(jnp.where(step >= starts, factors, 1))


@register_schedule("steps")
def steps(
    learning_rate: float,
    total_steps: int,
    *,
    learning_rate_drops: Sequence[float],
    drop_factor: float,
) -> optax.Schedule:
    """The paper's schedule; see `step_schedule`."""
    return step_schedule(learning_rate, learning_rate_drops, drop_factor, total_steps)


@register_schedule("cosine")
def cosine(
    learning_rate: float, total_steps: int, *, alpha: float = 0.0, exponent: float = 1.0
) -> optax.Schedule:
    """`optax.cosine_decay_schedule`: from `learning_rate` to `alpha * learning_rate`."""
    return optax.cosine_decay_schedule(learning_rate, total_steps, alpha, exponent)


@register_schedule("linear")
def linear(learning_rate: float, total_steps: int, *, end_value: float = 0.0) -> optax.Schedule:
    """`optax.linear_schedule`: from `learning_rate` to `end_value`."""
    return optax.linear_schedule(learning_rate, end_value, total_steps)


def phase_schedule(
    settings: PhaseConfig, total_steps: int, first_step: int = 0, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate of a phase by step.

    Args:
      settings: config section of the phase.
      total_steps: step at which the schedule ends.
      first_step: step at which it starts, with the warm-up.
      warmup_steps: steps in which the learning rate rises linearly from 0 before the schedule
        starts, which spans the others.

    Raises:
      InputError: see `check_schedule`; or the warm-up is not shorter than the schedule.
    """
    steps = total_steps - first_step
    if warmup_steps >= max(steps, 1):
        raise InputError(
            f"{settings.section}.warmup_epochs={settings.warmup_epochs:g} are {warmup_steps} steps;"
            f" expected fewer than the {steps} steps of the schedule"
        )
    schedule = _main_schedule(settings, steps - warmup_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, settings.learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    return (lambda step: schedule(jnp.maximum(step - first_step, 0))) if first_step else schedule


def epochs_schedule(settings: PhaseConfig, epochs: range, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of a phase by step, for a schedule that spans some of its epochs."""
    first, total = epochs.start * steps_per_epoch, epochs.stop * steps_per_epoch
    return phase_schedule(settings, total, first, round(settings.warmup_epochs * steps_per_epoch))


def _main_schedule(settings: PhaseConfig, total_steps: int) -> optax.Schedule:
    """The schedule after the warm-up."""
    field = f"{settings.section}.schedule"
    make = SCHEDULES.get(settings.schedule, field)
    names = accepted_keywords(make)
    arguments: dict[str, Any] = {
        _first_accepted(RATE_NAMES, names): settings.learning_rate,
        _first_accepted(STEPS_NAMES, names): total_steps,
    }
    if SCHEDULES.is_built_in(settings.schedule):
        arguments |= {name: getattr(settings, name) for name in _FIELDS if name in (names or ())}
    name = f"{field} {settings.schedule!r}"
    schedule = call_with_options(
        make, arguments, settings.schedule_options, name, f"{field}_options"
    )
    if not callable(schedule):
        raise InputError(f"{name} must return a function of the step; found {schedule!r}")
    return cast(optax.Schedule, schedule)


def _first_accepted(candidates: Sequence[str], names: frozenset[str] | None) -> str:
    """The first candidate that is accepted; the first of all if none is, for the error."""
    return next((name for name in candidates if names is None or name in names), candidates[0])


def check_schedule(settings: PhaseConfig) -> None:
    """Checks the schedule of a phase, before the number of its steps is known.

    Raises:
      InputError: an unknown name or option, a factory with other parameters, or a schedule that is
        not a function from a step to a scalar of at least 0.
    """
    schedule: Callable[[Any], Any] = _main_schedule(settings, _CHECKED_STEPS)
    name = f"{settings.section}.schedule {settings.schedule!r}"
    try:
        rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise failure_of(f"{name}, called with a traced step,", error) from error
    shape, dtype = getattr(rate, "shape", None), getattr(rate, "dtype", np.dtype(object))
    if shape != () or not jnp.issubdtype(dtype, jnp.number):
        raise InputError(f"{name} must return one number per step; found {rate!r}")
    if not SCHEDULES.is_built_in(settings.schedule):
        for step in (0, _CHECKED_STEPS // 2, _CHECKED_STEPS - 1):
            _check_rate(float(schedule(jnp.int32(step))), name, step)


def _check_rate(rate: float, name: str, step: int) -> None:
    if not 0 <= rate < float("inf"):
        raise InputError(
            f"{name} must return learning rates of at least 0; found {rate:g} at step {step} of "
            f"{_CHECKED_STEPS}"
        )
