"""Parameters that a phase does not train, by `config.PHASE.freeze`.

A frozen parameter is a constant of the training step: it gets no gradient, no weight decay, no
update, and does not count in the global norm of the gradient. An expression also freezes the batch
statistics whose names it matches: their layer normalizes with its running statistics. Batch
statistics that no expression matches move as before.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx

from imta_jax.config import PhaseConfig
from imta_jax.errors import InputError
from imta_jax.models.linen_model import LinenModel
from imta_jax.training.state import named_arrays

_MAX_LISTED = 8


def trained_variables(trainable: Any, settings: PhaseConfig) -> Any:
    """The NNX filter of the variables that a phase trains.

    Args:
      trainable: filter of the variables that the phase trains if `freeze` is empty.
      settings: config section of the phase.
    """
    if not settings.freeze:
        return trainable
    return nnx.All(trainable, nnx.Not(_matches(settings.freeze)))


def freeze_statistics(classifier: nnx.Module, settings: PhaseConfig) -> None:
    """Sets the layers of frozen batch statistics to inference mode."""
    if not settings.freeze:
        return
    matches = _matches(settings.freeze)
    for path, module in nnx.iter_modules(classifier):
        if isinstance(module, LinenModel):
            module.freeze_statistics(lambda name, path=path: matches((*path, *name), None))
        statistics = [n for n, x in vars(module).items() if isinstance(x, nnx.BatchStat)]
        if any(matches((*path, name), None) for name in statistics):
            module.eval()


def _matches(expressions: Iterable[str]) -> Callable[[tuple[Any, ...], Any], bool]:
    """An NNX filter: whether an expression is found in the name of a variable."""
    pattern = re.compile("|".join(f"(?:{expression})" for expression in expressions))
    return lambda path, value: bool(pattern.search(".".join(map(str, path))))


def check_expressions(settings: PhaseConfig, classifier: nnx.Module, trainable: Any) -> None:
    """Checks that each expression of a phase is found in the name of a parameter.

    Args:
      settings: config section of the phase.
      classifier: classifier of the phase, which may be abstract.
      trainable: NNX filter of the variables that the phase trains if none is frozen.

    Raises:
      InputError: names the field, the expression and some parameters; or nothing is trained.
    """
    names = list(named_arrays(nnx.state(classifier, trainable)))
    frozen = _matches(settings.freeze) if settings.freeze else None
    trained = [name for name in names if frozen is None or not frozen((name,), None)]
    multiplied = [expression for expression, _ in settings.learning_rate_multipliers]
    for field, expressions, valid in (
        ("freeze", settings.freeze, names),
        ("learning_rate_multipliers", multiplied, trained),
    ):
        for expression in expressions:
            if not any(re.search(expression, name) for name in valid):
                raise InputError(
                    f"{settings.section}.{field}: {expression!r} is found in no name "
                    f"of a trained parameter; there are {len(valid)}, for example "
                    f"{', '.join(_spread(valid))}"
                )
    if not trained:
        raise InputError(
            f"{settings.section}.freeze={settings.freeze} freezes all {len(names)} parameters; "
            "expected at least one that is trained"
        )


def _spread(names: list[str]) -> list[str]:
    """A few names from everywhere in the network."""
    return names[:: max(1, len(names) // _MAX_LISTED)][:_MAX_LISTED]
