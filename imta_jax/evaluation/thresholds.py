"""Where to stop: one confidence threshold per exit, and the exit that each image then takes.

Paper section 4, "Adaptive inference": an image leaves at the first exit whose confidence reaches
that exit's threshold; the thresholds follow from a budget, on held-out images. The rule is
confidence >= threshold, as in the reference code (the paper writes "greater than"). What accuracy
and cost come out is left to `adaptive`, the confidence itself to `predictions`.
"""

import numpy as np

NOBODY_LEAVES = 1e8
EVERYBODY_LEAVES = -1e8

# Fractions in float32 sum to 1 only up to rounding.
_SUM_TOLERANCE = 1e-4


def geometric_quota(q: float | np.ndarray, num_exits: int) -> np.ndarray:
    """Fractions of images per exit proportional to q^k, k = 1..E (MSDNet's sweep).

    A small q sends nearly all images out at the first exit, q = 1 the same number everywhere, q = 2
    most of them to the last; the reference code takes q = p/20, p = 1..40. Float32, as exp(k log q)
    divided by the sum, like there: the counts floor(N * fraction) depend on it. Logarithm and
    exponential are taken in float64 and then rounded, so that every machine gets the same counts.

    Args:
      q: positive number, or an array of them [B].
      num_exits: E, from 1.

    Returns:
      float32 [E], or [B, E]; each row sums to 1 up to rounding.

    Raises:
      ValueError: fewer exits than one; a q that is not positive, or too large for float32.
    """
    q = np.asarray(q, np.float64)
    if num_exits < 1:
        raise ValueError(f"found {num_exits} exits; a network has at least one")
    # Outside these bounds powers of q, or their sum, are 0 or infinite in float32.
    if not np.all((q >= 1e-30) & (q <= np.exp(85 / num_exits))):
        raise ValueError(f"q = {q} is not usable; expected positive numbers, usually 0.05 to 2")
    exponents = np.log(q.astype(np.float32).astype(np.float64)).astype(np.float32)[..., None]
    exponents = exponents * np.arange(1, num_exits + 1, dtype=np.float32)
    weights = np.exp(exponents.astype(np.float64)).astype(np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def thresholds_for_quota(confidence: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Thresholds that let the asked-for fraction of images leave at each exit (reference code).

    At exit i the count is floor(N * quota[i]), the product in the quota's own precision. The
    threshold is the confidence of the count-th most confident image among those that have not
    left before, and all images that reach it leave: a tie makes an exit take more than its
    quota, and the order of the images never matters.

    Args:
      confidence: [E, N], of held-out validation images; finite.
      quota: [E] fractions from 0 that sum to at most 1, or [B, E], one row per budget.

    Returns:
      float32 [E], or [B, E]: 1e8 at an exit nobody takes (its count is 0, or fewer images than the
      count are left), -1e8 at the last exit, which takes all that come.

    Raises:
      ValueError: shapes that disagree, confidences that are not finite, unusable fractions.
    """
    confidence = checked_confidence(confidence)
    num_exits, num_images = confidence.shape
    quota = _checked_quota(quota, num_exits)
    counts = np.floor(num_images * np.atleast_2d(quota)).astype(np.int64)  # [B, E]
    thresholds = np.full(counts.shape, EVERYBODY_LEAVES, np.float32)
    waiting = np.ones((len(counts), num_images), bool)  # [B, N]: has not left yet
    for i in range(num_exits - 1):
        thresholds[:, i] = _thresholds_of_exit(confidence[i], counts[:, i], waiting)
        waiting &= confidence[i][None, :] < thresholds[:, i, None]
    return thresholds.reshape(quota.shape)


def exit_of(confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The first exit whose confidence reaches its threshold (>=); the last takes all that come.

    Args:
      confidence: [E, N]; finite.
      thresholds: [E], or [B, E], one row per budget.

    Returns:
      int32 [N], or [B, N]: index of the exit, from 0.

    Raises:
      ValueError: thresholds of another number of exits or not numbers, confidences not finite.
    """
    confidence = checked_confidence(confidence)
    thresholds = _checked_thresholds(thresholds, len(confidence))
    last = len(confidence) - 1
    exits = np.full((*thresholds.shape[:-1], confidence.shape[1]), last, np.int32)
    for i in reversed(range(last)):  # the earliest exit writes last, so it wins
        np.copyto(exits, i, where=confidence[i] >= thresholds[..., i, None])
    return exits


def checked_confidence(confidence: np.ndarray) -> np.ndarray:
    """Confidences as float32 [E, N], the precision in which thresholds are kept and compared.

    Raises:
      ValueError: not two axes, nothing in it, or a value that is not finite (the first is named).
    """
    confidence = np.asarray(confidence, np.float32)
    if confidence.ndim != 2 or confidence.size == 0:
        raise ValueError(
            f"confidence has shape {confidence.shape}; expected [exits, images], neither of them 0"
        )
    finite = np.isfinite(confidence)
    if not finite.all():
        i, n = np.argwhere(~finite)[0]
        raise ValueError(
            f"confidence {confidence[i, n]} at exit {i}, image {n} is not finite; "
            "check the logits it was computed from"
        )
    return confidence


def _thresholds_of_exit(
    confidence: np.ndarray, counts: np.ndarray, waiting: np.ndarray
) -> np.ndarray:
    """Confidence of the counts[b]-th most confident waiting image: [N], [B], [B, N] -> [B]."""
    order = np.argsort(-confidence)
    rank = np.cumsum(waiting[:, order], axis=1, dtype=np.int32)  # of the waiting, from 1
    position = (rank < counts[:, None]).sum(axis=1)  # where the rank first reaches the count
    usable = (counts > 0) & (counts <= rank[:, -1])
    threshold = confidence[order[np.minimum(position, len(order) - 1)]]
    return np.where(usable, threshold, np.float32(NOBODY_LEAVES))


def _checked_quota(quota: np.ndarray, num_exits: int) -> np.ndarray:
    quota = np.asarray(quota)
    if quota.dtype != np.float32:
        quota = quota.astype(np.float64)
    _check_exits("quota", quota.shape, num_exits)
    if not (quota >= 0).all():  # also catches NaN
        raise ValueError(f"quota {quota} has fractions that are negative or not numbers")
    sums = quota.sum(axis=-1)
    if (sums > 1 + _SUM_TOLERANCE).any():
        raise ValueError(
            f"the fractions of a quota sum to {sums.max()}, expected at most 1: {quota}; "
            "divide them by their sum"
        )
    return quota


def _checked_thresholds(thresholds: np.ndarray, num_exits: int) -> np.ndarray:
    thresholds = np.asarray(thresholds, np.float32)
    _check_exits("thresholds", thresholds.shape, num_exits)
    if np.isnan(thresholds).any():
        raise ValueError(
            f"thresholds {thresholds} hold NaN; choose them again on validation images"
        )
    return thresholds


def _check_exits(name: str, shape: tuple[int, ...], num_exits: int) -> None:
    if len(shape) not in (1, 2) or shape[-1] != num_exits:
        raise ValueError(
            f"{name} of shape {shape} with confidences of {num_exits} exits; expected "
            f"[{num_exits}] or [budgets, {num_exits}]: do both belong to the same network?"
        )
