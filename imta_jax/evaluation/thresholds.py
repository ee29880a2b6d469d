"""Exit thresholds for a budget, and the exit each image takes under them.

Paper section 4, "Adaptive inference": an image leaves at the first exit whose confidence reaches
that exit's threshold. Thresholds are chosen on validation images. The rule is
confidence >= threshold, as in the reference code (the paper writes "greater than").
"""

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Int, Int32

# Thresholds that no confidence and every confidence reaches.
NEVER_LEAVE = 1e8
ALWAYS_LEAVE = -1e8

# Fractions in float32 sum to 1 only up to rounding.
_SUM_TOLERANCE = 1e-4


def geometric_quota(q: ArrayLike, num_exits: int) -> Float32[np.ndarray, "*budgets E"]:
    """Fractions of images per exit, proportional to q^k for k = 1..E (MSDNet's sweep).

    A small q lets nearly all images leave at the first exit, q = 1 the same number at every exit,
    q = 2 most at the last. The reference code uses q = p/20 with p = 1..40.

    The result is float32, computed as exp(k log q) divided by the sum, as in the reference code:
    the counts floor(N * fraction) depend on this. The logarithm and the exponential are computed
    in float64 and then rounded, so that the counts do not depend on the machine.

    Args:
      q: a positive number, or an array [budgets] of them.
      num_exits: E, at least 1.

    Returns:
      Fractions [E] or [budgets, E]; each row sums to 1 up to rounding.

    Raises:
      ValueError: `num_exits` is below 1, or q is not positive or overflows float32.
    """
    q = np.asarray(q, np.float64)
    if num_exits < 1:
        raise InputError(f"num_exits={num_exits}; expected at least 1")
    # Outside these bounds powers of q, or their sum, are 0 or infinite in float32.
    if not np.all((q >= 1e-30) & (q <= np.exp(85 / num_exits))):
        raise InputError(f"q={q}; expected positive numbers, usually 0.05 to 2")
    exponents = np.log(q.astype(np.float32).astype(np.float64)).astype(np.float32)[..., None]
    exponents = exponents * np.arange(1, num_exits + 1, dtype=np.float32)
    weights = np.exp(exponents.astype(np.float64)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def thresholds_for_quota(
    confidence: ArrayLike, quota: ArrayLike
) -> Float32[np.ndarray, "*budgets E"]:
    """Thresholds that let a given fraction of images leave at each exit (reference code).

    At exit i the count is floor(N * quota[i]), computed in the quota's precision. The threshold is
    the confidence of the count-th most confident image among the images that have not left yet. All
    images that reach it leave, so with ties an exit takes more than its quota. The result does not
    depend on the order of the images.

    Args:
      confidence: finite confidences [E, N] of validation images.
      quota: fractions [E] or [budgets, E], at least 0, that sum to at most 1.

    Returns:
      Thresholds [E] or [budgets, E]. 1e8 at an exit without images, because its count is 0 or
      exceeds the number of images left. -1e8 at the last exit, where all remaining images leave.

    Raises:
      ValueError: shapes that disagree, confidences that are not finite, or invalid fractions.
    """
    confidence = checked_confidence(confidence)
    num_exits, num_images = confidence.shape
    quota = _checked_quota(quota, num_exits)
    counts = np.floor(num_images * np.atleast_2d(quota)).astype(np.int64)  # [B, E]
    thresholds = np.full(counts.shape, ALWAYS_LEAVE, np.float32)
    waiting = np.ones((len(counts), num_images), bool)  # [B, N]: images that have not left yet
    for i in range(num_exits - 1):
        thresholds[:, i] = _thresholds_of_exit(confidence[i], counts[:, i], waiting)
        waiting &= confidence[i][None, :] < thresholds[:, i, None]
    return thresholds.reshape(quota.shape)


def exit_of(confidence: ArrayLike, thresholds: ArrayLike) -> Int32[np.ndarray, "*budgets N"]:
    """First exit whose confidence reaches its threshold (>=), otherwise the last exit.

    Args:
      confidence: finite confidences [E, N].
      thresholds: [E] or [budgets, E].

    Returns:
      Exit of each image, from 0: [N] or [budgets, N].

    Raises:
      ValueError: thresholds for another number of exits or NaN, or confidences that are not finite.
    """
    confidence = checked_confidence(confidence)
    thresholds = _checked_thresholds(thresholds, len(confidence))
    last = len(confidence) - 1
    exits = np.full((*thresholds.shape[:-1], confidence.shape[1]), last, np.int32)
    for i in reversed(range(last)):  # The earliest exit is written last, so it takes precedence.
        np.copyto(exits, i, where=confidence[i] >= thresholds[..., i, None])
    return exits


def checked_confidence(confidence: ArrayLike) -> Float32[np.ndarray, "E N"]:
    """Checks confidences and converts them to float32, the precision of stored thresholds.

    Raises:
      ValueError: not two axes, empty, or a value that is not finite (names the first).
    """
    confidence = np.asarray(confidence, np.float32)
    if confidence.ndim != 2 or confidence.size == 0:
        raise InputError(
            f"confidence has shape {confidence.shape}; expected [exits, images], neither of them 0"
        )
    finite = np.isfinite(confidence)
    if not finite.all():
        i, n = np.argwhere(~finite)[0]
        raise InputError(
            f"confidence {confidence[i, n]} at exit {i + 1}, image {n} is not finite; "
            "check the logits it was computed from"
        )
    return confidence


def _thresholds_of_exit(
    confidence: Float32[np.ndarray, " N"],
    counts: Int[np.ndarray, " B"],
    waiting: Bool[np.ndarray, "B N"],
) -> Float32[np.ndarray, " B"]:
    """Confidence of the counts[b]-th most confident waiting image."""
    order = np.argsort(-confidence)
    rank = np.cumsum(waiting[:, order], axis=1, dtype=np.int32)  # among waiting images, from 1
    position = (rank < counts[:, None]).sum(axis=1)  # first position whose rank is the count
    valid = (counts > 0) & (counts <= rank[:, -1])
    threshold = confidence[order[np.minimum(position, len(order) - 1)]]
    return np.where(valid, threshold, np.float32(NEVER_LEAVE))


def _checked_quota(quota: ArrayLike, num_exits: int) -> Float[np.ndarray, "*budgets E"]:
    quota = np.asarray(quota)
    if quota.dtype != np.float32:
        quota = quota.astype(np.float64)
    _check_num_exits("quota", quota.shape, num_exits)
    if not (quota >= 0).all():  # Also false for NaN.
        raise InputError(f"quota={quota}; expected fractions of at least 0")
    sums = quota.sum(axis=-1)
    if (sums > 1 + _SUM_TOLERANCE).any():
        raise InputError(
            f"quota={quota} sums to {sums.max()}; expected at most 1: divide it by its sum"
        )
    return quota


def _checked_thresholds(thresholds: ArrayLike, num_exits: int) -> Float32[np.ndarray, "*budgets E"]:
    thresholds = np.asarray(thresholds, np.float32)
    _check_num_exits("thresholds", thresholds.shape, num_exits)
    if np.isnan(thresholds).any():
        raise InputError(f"thresholds={thresholds}; expected numbers, found NaN")
    return thresholds


def _check_num_exits(name: str, shape: tuple[int, ...], num_exits: int) -> None:
    if len(shape) not in (1, 2) or shape[-1] != num_exits:
        raise InputError(
            f"{name} of shape {shape} with confidences of {num_exits} exits; expected "
            f"[{num_exits}] or [budgets, {num_exits}]: do both belong to the same network?"
        )
