"""One-for-all distillation (paper Sec. 3.3, Eq. 7-8): the last exit is the teacher of all others.

The loss, with every convention in which the paper and the published code differ. The caller passes
the teacher's logits: those of the network's own last exit, or of the frozen phase-I last exit.
"""

from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imta_jax import options
from imta_jax.errors import InputError, unknown_name
from imta_jax.runtime.registry import register_objective
from imta_jax.techniques.cross_entropy import cross_entropy

REDUCTIONS = get_args(options.Reduction)
LAST_EXIT_LOSSES = get_args(options.LastExitLoss)


def teacher_divergence(
    logits: Float[Array | np.ndarray, "E N K"],
    teacher_logits: Float[Array | np.ndarray, "N K"],
    *,
    temperature: float | jax.Array,
    reduction: str = "batch",
) -> Float[Array, " E"]:
    """KL(teacher || student) of every exit in nats (Eq. 8), both softmaxes at `temperature`.

    Args:
      logits: logits of the students.
      teacher_logits: no gradient flows into them.
      temperature: above 0.
      reduction: one of `REDUCTIONS`.

    Returns:
      float32, not multiplied by the squared temperature.

    Raises:
      InputError: an unknown reduction or a temperature that is not above 0.
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise InputError(f"temperature must be above 0; found {temperature}")
    chex.assert_shape(teacher_logits, logits.shape[1:])
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32))
    log_teacher = jax.nn.log_softmax(teacher / temperature)[None]
    log_student = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32) / temperature)
    p_teacher = jnp.exp(log_teacher)
    # 0 log 0 = 0, also for a class that logits of -inf mask in the teacher and the students, where
    # optax.losses.kl_divergence_with_log_targets gives NaN.
    per_class = jnp.where(p_teacher > 0, p_teacher * (log_teacher - log_student), 0.0)
    mean = per_class.sum(axis=-1).mean(axis=-1)
    return mean if reduction == "batch" else mean / logits.shape[-1]


@register_objective("one_for_all")
def one_for_all_loss(
    logits: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    teacher_logits: jax.Array | np.ndarray,
    *,
    alpha: float | jax.Array,
    temperature: float | jax.Array,
    reduction: str = "batch",
    temperature_squared: bool = False,
    last_exit: str = "mixed",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Sum over exits of alpha * CE + (1 - alpha) * KL(teacher || student) (Eq. 7), in nats.

    The defaults follow the paper's text. The published code is `alpha=1-gamma`,
    `reduction="elements"`, `temperature_squared=True`, `last_exit="cross_entropy"`. A run passes
    every argument from `config.phase_two`.

    Args:
      logits: [E, N, K].
      labels: integers [N], from 0, or the probability of each class, [N, K].
      teacher_logits: [N, K]. No gradient flows into them.
      alpha: weight of the cross-entropy, 0 to 1; 1 trains without distillation.
      temperature: temperature of both softmaxes of the divergence, above 0.
      reduction: one of `REDUCTIONS`.
      temperature_squared: whether the divergence is multiplied by temperature ** 2.
      last_exit: one of `LAST_EXIT_LOSSES`.
      label_smoothing: epsilon of `cross_entropy`. The divergence from the teacher has none.

    Raises:
      InputError: an unknown name, `alpha` outside 0 to 1, a temperature that is not above 0, or
        shapes that do not fit.
    """
    _check_shapes(logits, labels, teacher_logits)
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 and 1; found {alpha}")
    if last_exit not in LAST_EXIT_LOSSES:
        raise unknown_name("last_exit", last_exit, LAST_EXIT_LOSSES)
    per_exit_entropy = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    divergence = teacher_divergence(
        logits, teacher_logits, temperature=temperature, reduction=reduction
    )
    factor = temperature**2 if temperature_squared else 1.0
    per_exit = alpha * per_exit_entropy + (1 - alpha) * factor * divergence
    if last_exit == "cross_entropy":
        per_exit = per_exit.at[-1].set(per_exit_entropy[-1])
    return per_exit.sum()


def _check_shapes(
    logits: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    teacher_logits: jax.Array | np.ndarray,
) -> None:
    """Raises an InputError unless the shapes are [E, N, K], [N] or [N, K], and [N, K]."""
    fits = (
        logits.ndim == 3
        and labels.shape in (logits.shape[1:2], logits.shape[1:])
        and teacher_logits.shape == logits.shape[1:]
    )
    if not fits:
        raise InputError(
            "expected logits [E, N, K], labels [N] or [N, K], and teacher_logits [N, K]; found "
            f"{logits.shape}, {labels.shape} and {teacher_logits.shape}"
        )
