"""A loss function of logits and labels, chosen by `config.PHASE.objective`, as an objective.

    @imta_jax.register_objective("focal")
    def focal_loss(logits, labels, *, gamma=2.0):
        ...

The function gets logits [E, N, K] in float32 and labels [N], and returns the total loss or one loss
per exit [E]. With mixup or cutmix, labels are the probability of each class, [N, K]. By their names
its other parameters get, in this order of precedence: options of `config.PHASE.objective_options`;
`teacher_logits` [N, K] without a gradient; fields of `config.PHASE`, for example `alpha` or
`label_smoothing`. Gradient equilibrium, modes and what is trained are as for the default loss of
the phase.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import TraceContextError
from jaxtyping import Array, Float

from imta_jax.config import PhaseOneConfig, PhaseTwoConfig
from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import (
    OBJECTIVES,
    accepted_keywords,
    check_options,
    dotted_path_of,
    required_keywords,
    signature_of,
)
from imta_jax.training.objectives import (
    ExitMetrics,
    PhaseOneObjective,
    PhaseTwoObjective,
    exit_metrics,
)
from imta_jax.types import Labels

_TEACHER = "teacher_logits"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class LossObjective:
    """The loss function of a phase. Metrics stay cross-entropy and accuracy.

    Attributes:
      phase: modes, gradient equilibrium and teacher.
      exit_losses: "sum" or "mean" of a loss per exit.
      loss: the function.
      arguments: keyword arguments of the function, without the teacher.
      name: config field and value, for error messages.
    """

    phase: PhaseOneObjective | PhaseTwoObjective
    exit_losses: str
    loss: Callable[..., Any]
    arguments: Mapping[str, Any] = dataclasses.field(hash=False)
    name: str

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Like the phase's default objective."""
        self.phase.set_mode(classifier)

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`."""
        logits, teacher = self.phase.outputs(classifier, images)
        return self.total(logits, labels, teacher), exit_metrics(logits, labels)

    def total(
        self,
        logits: Float[Array, "E N K"],
        labels: Labels,
        teacher: Float[Array, "N K"],
    ) -> Float[Array, ""]:
        """The loss of a batch.

        Raises:
          InputError: the function returns neither a scalar nor one loss per exit.
        """
        names = accepted_keywords(self.loss)
        extra = {_TEACHER: jax.lax.stop_gradient(teacher)} if _TEACHER in (names or ()) else {}
        value = jnp.asarray(self.loss(logits, labels, **extra, **self.arguments))
        is_real = jnp.issubdtype(value.dtype, jnp.floating)
        if value.shape not in ((), logits.shape[:1]) or not is_real:
            raise InputError(
                f"{self.name} must return a scalar or one loss per exit, shape "
                f"{logits.shape[:1]}, of a floating-point type; found {value.shape} {value.dtype}"
            )
        return value.sum() if self.exit_losses == "sum" else value.mean()


def loss_objective(
    settings: PhaseOneConfig | PhaseTwoConfig, phase: PhaseOneObjective | PhaseTwoObjective
) -> LossObjective:
    """The objective that `config.PHASE.objective` names.

    Args:
      settings: config section of the phase.
      phase: its default objective.

    Raises:
      InputError: an unknown name, an unknown option, or a parameter without a value.
    """
    field = f"{settings.section}.objective"
    loss = OBJECTIVES.get(settings.objective, field)
    name = f"{field} {settings.objective!r}"
    label = f"{name} ({dotted_path_of(loss)})"
    _check_signature(loss, {_TEACHER, *settings.to_dict(), *settings.objective_options}, label)
    check_options(loss, settings.objective_options, label, num_positional=2)
    names = accepted_keywords(loss) or frozenset()
    fields = {n: v for n, v in settings.to_dict().items() if n in names}
    arguments = {**fields, **settings.objective_options}
    if settings.label_smoothing and "label_smoothing" not in arguments:
        raise InputError(
            f"{settings.section}.label_smoothing is {settings.label_smoothing:g}, but {name} "
            f"({dotted_path_of(loss)}) has no parameter label_smoothing; add one, or set 0"
        )
    teacher = {_TEACHER: None} if _TEACHER in names else {}
    missing = set(required_keywords(loss, num_positional=2)) - arguments.keys() - teacher.keys()
    if missing:
        name = sorted(missing)[0]
        raise InputError(
            f"{label} requires {name!r}; set {settings.section}.objective_options.{name}"
        )
    try:
        signature_of(loss).bind(None, None, **arguments, **teacher)
    except TypeError as error:
        raise InputError(
            f"{name}: {dotted_path_of(loss)} is called with (logits, labels) and the keywords "
            f"{', '.join([*arguments, *teacher]) or '(none)'}: {error}; set "
            f"{settings.section}.objective_options"
        ) from error
    exit_losses = settings.exit_losses if isinstance(settings, PhaseOneConfig) else "sum"
    return LossObjective(phase, exit_losses, loss, arguments, name)


def _check_signature(loss: Callable[..., Any], keywords: Set[str], label: str) -> None:
    """Raises an `InputError` unless the first two parameters can be the logits and the labels.

    Args:
      loss: the function.
      keywords: names that are passed as keywords.
      label: description of the function, for messages.
    """
    signature = signature_of(loss)
    positional = [p.name for p in signature.parameters.values() if p.kind in _POSITIONAL]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if (len(positional) < 2 and not takes_any) or keywords & set(positional[:2]):
        raise InputError(
            f"{label} has the signature {signature}; expected (logits, labels), and then options. "
            "Add both as the first parameters, also one that is not used"
        )


def check_loss(
    objective: LossObjective, num_exits: int, num_classes: int, *, mixed_labels: bool = False
) -> None:
    """Calls a loss abstractly, so that a wrong shape raises an error before training.

    Args:
      objective: its loss is called.
      num_exits: E of the logits.
      num_classes: K of the logits.
      mixed_labels: whether labels are probabilities of classes; see `PhaseConfig.mixes_labels`.

    Raises:
      InputError: the loss fails, returns another shape or type, or keeps state.
    """
    logits = jax.ShapeDtypeStruct((num_exits, 2, num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    if mixed_labels:
        labels = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    teacher = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    mixed = " (the probability of each class, with mixup or cutmix)" if mixed_labels else ""
    label = f"{objective.name}, called with logits {logits.shape} and labels {labels.shape}{mixed},"
    try:
        with jax.checking_leaks():
            jax.eval_shape(objective.total, logits, labels, teacher)
    except Exception as error:
        if isinstance(error, TraceContextError) or "Leaked trace" in str(error):
            raise InputError(
                f"{label} stores an array for its next call; expected a function without state:"
                " keep it in a variable of the heads"
            ) from error
        raise failure_of(label, error) from error
