"""One-for-all distillation (paper Sec. 3.3, Eq. 7-8): the last exit teaches all the others.

The loss and every convention in which the paper and the reference code differ. Who teaches (the
network's own last exit, or the frozen phase-I one) is the caller's choice: it passes the logits.
"""

import jax
import jax.numpy as jnp

from imta_jax.errors import InputError, unknown_name

# How the divergence of a batch becomes a number: "batch" sums over classes and averages over images
# (Eq. 8); "elements" averages over both, K times weaker (reference code, torch's default).
REDUCTIONS = ("batch", "elements")
# What the last exit is trained with: "mixed" is Eq. 7 like every exit, "cross_entropy" is plain
# cross-entropy with weight 1 (reference code).
LAST_EXIT_LOSSES = ("mixed", "cross_entropy")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of every exit in nats.

    Args:
      logits: [E, N, K], or [..., N, K].
      labels: integers [N].

    Returns:
      [E] float32, the leading axes of `logits`.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    index = jnp.broadcast_to(labels[..., None], (*logits.shape[:-1], 1))
    return -jnp.take_along_axis(log_p, index, axis=-1)[..., 0].mean(axis=-1)


def teacher_divergence(
    logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float | jax.Array,
    reduction: str = "batch",
) -> jax.Array:
    """KL(teacher || student) of every exit in nats (Eq. 8), both softmaxes at `temperature`.

    Args:
      logits: students, [E, N, K].
      teacher_logits: [N, K]; no gradient flows into them.
      temperature: above 0; 1 leaves the probabilities as they are.
      reduction: one of `REDUCTIONS`.

    Returns:
      [E] float32, not multiplied by the temperature squared.

    Raises:
      ValueError: an unknown reduction or a temperature not above 0.
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise InputError(f"temperature must be above 0; found {temperature}")
    teacher = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32))
    log_teacher = jax.nn.log_softmax(teacher / temperature)[None]
    log_student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    per_class = jnp.exp(log_teacher) * (log_teacher - log_student)
    mean = per_class.sum(axis=-1).mean(axis=-1)
    return mean if reduction == "batch" else mean / logits.shape[-1]


def one_for_all_loss(
    logits: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array,
    *,
    alpha: float | jax.Array,
    temperature: float | jax.Array,
    reduction: str = "batch",
    temperature_squared: bool = False,
    last_exit: str = "mixed",
) -> jax.Array:
    """Sum over exits of alpha * CE + (1 - alpha) * KL(teacher || student) (Eq. 7).

    The defaults are the paper's text; the reference code is `alpha=1-gamma`,
    `reduction="elements"`, `temperature_squared=True`, `last_exit="cross_entropy"`.

    Args:
      logits: [E, N, K].
      labels: integers [N], from 0.
      teacher_logits: [N, K]; no gradient flows into them.
      alpha: weight of the cross-entropy, 0 to 1; 1 is training without distillation.
      temperature: of both softmaxes of the divergence, above 0.
      reduction: one of `REDUCTIONS`.
      temperature_squared: whether the divergence is multiplied by temperature ** 2.
      last_exit: one of `LAST_EXIT_LOSSES`.

    Returns:
      A float32 scalar in nats.

    Raises:
      ValueError: an unknown name, alpha outside 0 to 1, a temperature not above 0, shapes that do
        not fit.
    """
    _check_shapes(logits, labels, teacher_logits)
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie in 0 to 1; found {alpha}")
    if last_exit not in LAST_EXIT_LOSSES:
        raise unknown_name("last_exit", last_exit, LAST_EXIT_LOSSES)
    plain = cross_entropy(logits, labels)  # [E]
    divergence = teacher_divergence(
        logits, teacher_logits, temperature=temperature, reduction=reduction
    )
    factor = temperature**2 if temperature_squared else 1.0
    per_exit = alpha * plain + (1 - alpha) * factor * divergence
    if last_exit == "cross_entropy":
        per_exit = per_exit.at[-1].set(plain[-1])
    return per_exit.sum()


def _check_shapes(logits: jax.Array, labels: jax.Array, teacher_logits: jax.Array) -> None:
    """Raises a ValueError unless the shapes are [E, N, K], [N] and [N, K]."""
    fits = logits.ndim == 3 and (labels.shape, teacher_logits.shape) == (
        logits.shape[1:2],
        logits.shape[1:],
    )
    if not fits:
        raise InputError(
            "expected logits [E, N, K], labels [N] and teacher_logits [N, K]; found "
            f"{logits.shape}, {labels.shape} and {teacher_logits.shape}"
        )
