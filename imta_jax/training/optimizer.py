"""Optimizers: `sgd` (the paper's), `adamw`, `lamb`, and those of other packages.

    @imta_jax.register_optimizer("my_adam")
    def my_adam(learning_rate, *, weight_decay, b1=0.9):
        return optax.adamw(learning_rate, b1=b1, weight_decay=weight_decay)

A factory gets `learning_rate`, the schedule; `weight_decay` of the phase, if it has a parameter of
that name; and the options of `config.PHASE.optimizer_options`. Factories of Optax work by dotted
path, for example "optax:lion".

The optimizers in `ELEMENTWISE` update each number from its own gradient, so that they run on packed
parameters (`packing`). All others get a dictionary from the names of the trained parameters, as in
checkpoints, to their arrays. They may depend on the norm, shape or name of a parameter.
"""

import re
from typing import Any

import jax
import optax

from imta_jax.config import PhaseConfig
from imta_jax.errors import InputError
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import OPTIMIZERS, accepted_keywords, register_optimizer
from imta_jax.training.factories import call_with_options
from imta_jax.training.packing import Packed
from imta_jax.training.state import named_arrays

ELEMENTWISE = frozenset({"sgd", "adamw"})
# Fields of a phase that a factory of this package gets by name.
_FIELDS = ("momentum", "nesterov", "weight_decay")


@register_optimizer("sgd")
def sgd(
    learning_rate: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay is added to the gradient of every parameter, then momentum.

    Args:
      learning_rate: learning rate by step.
      momentum: 0.9 in the paper.
      nesterov: True in the paper's text, False in the published code.
      weight_decay: 1e-4 in the paper, on all parameters.

    Raises:
      InputError: a momentum below 0 or not below 1, or a negative weight decay.
    """
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1; found {momentum}")
    if weight_decay < 0:
        raise InputError(f"weight_decay must not be negative; found {weight_decay}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


@register_optimizer("adamw")
def adamw(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """`optax.adamw`: Adam with decoupled weight decay, on all parameters."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)


@register_optimizer("lamb")
def lamb(
    learning_rate: optax.Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """`optax.lamb`: Adam whose update of each parameter is scaled to the parameter's norm."""
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def phase_optimizer(
    settings: PhaseConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of a phase, for packed parameters.

    Args:
      settings: config section of the phase.
      schedule: the learning rate by step.

    Raises:
      InputError: an unknown name or option, a factory with other parameters, or one that returns
        no `optax.GradientTransformation`.
    """
    tx, multipliers = _factory_result(settings, schedule), settings.learning_rate_multipliers
    if settings.gradient_clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(settings.gradient_clip_norm), tx)
    if multipliers:
        tx = optax.chain(tx, scale_by_name(multipliers))
    return tx if is_elementwise(settings) else over_names(tx)


def is_elementwise(settings: PhaseConfig) -> bool:
    """Whether the optimizer, without gradient clipping, may run on packed parameters."""
    return settings.optimizer in ELEMENTWISE and not settings.learning_rate_multipliers


def _factory_result(
    settings: PhaseConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    field = f"{settings.section}.optimizer"
    name, make = f"{field} {settings.optimizer!r}", OPTIMIZERS.get(settings.optimizer, field)
    names = accepted_keywords(make)
    fields = _FIELDS if OPTIMIZERS.is_built_in(settings.optimizer) else ("weight_decay",)
    arguments: dict[str, Any] = {"learning_rate": schedule}
    arguments |= {n: getattr(settings, n) for n in fields if names is None or n in names}
    if "weight_decay" not in arguments and settings.weight_decay:
        raise InputError(
            f"{settings.section}.weight_decay must be 0 with {name}, which has no parameter "
            f"weight_decay; found {settings.weight_decay:g}"
        )
    tx = call_with_options(make, arguments, settings.optimizer_options, name, f"{field}_options")
    if not isinstance(tx, optax.GradientTransformation):
        raise InputError(f"{name} must return an optax.GradientTransformation; found {tx!r}")
    return tx


def scale_by_name(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies updates by name; see `PhaseConfig.learning_rate_multipliers`."""

    def factor(name: str) -> float:
        return next((value for regex, value in multipliers if re.search(regex, name)), 1.0)

    def scaled(updates: Any, params: Any) -> Any:
        return {name: factor(name) * x for name, x in updates.items()}

    return optax.stateless(scaled)


def over_names(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer of packed parameters from one of a dictionary of names to arrays."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Packed, Any]:
        result: Any = tx.update(named_arrays(updates), state, named_arrays(params))
        named, state = result
        leaves = [named[name] for name in named_arrays(params)]
        tree = jax.tree.unflatten(params.packing.structure, leaves)
        return params.packing.pack(tree), state

    named_update: Any = update
    return optax.GradientTransformation(lambda params: tx.init(named_arrays(params)), named_update)


def check_optimizer(settings: PhaseConfig, params: Any = None) -> None:
    """Checks the optimizer of a phase, and its update of abstract parameters if they are given.

    Args:
      settings: config section of the phase.
      params: the trained parameters, a pytree of `jax.ShapeDtypeStruct`.

    Raises:
      InputError: see `phase_optimizer`; or the update fails or changes shapes.
    """
    tx = _factory_result(settings, lambda step: settings.learning_rate)
    if params is None:
        return
    named = named_arrays(params)
    name = f"{settings.section}.optimizer {settings.optimizer!r}"
    try:
        updates = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p)[0], named)
    except Exception as error:
        fix = (
            "; it is called as init(params) and update(gradients, state, params), with dictionaries"
            " of names to arrays"
        )
        raise failure_of(name, error, fix) from error
    shapes = {key: x.shape for key, x in named.items()}
    if not isinstance(updates, dict) or {k: x.shape for k, x in updates.items()} != shapes:
        raise InputError(
            f"{name} must return an update of each parameter's shape; found {updates!r:.200}"
        )
