"""Thresholds with a statistical guarantee relative to the network's last exit.

The *excess error* of an image is 1 if its early exit is wrong and the last exit is correct (an
early-exit error), -1 if its early exit is correct and the last exit is wrong (an early-exit
correction), and 0 otherwise. Its mean R is the error that early exits add, so "at most 1 percentage
point worse than the full network" is R <= 0.01. The clipped risk counts early-exit errors only. It
is never below R, so a bound on it also bounds R.

Three guarantees, over the draw of the validation images:

- `expectation`: conformal risk control (Angelopoulos et al., ICLR 2024, Theorem 1). The clipped
  risk is at most the tolerance on average over validation sets. For one validation set it can be
  higher.
- `clipped`: with the given confidence, the clipped risk is at most the tolerance. Upper confidence
  bounds are tested in a fixed sequence that starts at the strictest thresholds (Bates et al., JACM
  2021; Angelopoulos et al., "Learn then Test", 2021; for early exits Jazbec et al., NeurIPS 2024).
  The number of early-exit errors is binomial, so the bound is Clopper and Pearson's, which is exact
  (Hoeffding-Bentkus is an approximation).
- `net`: the same for R, from two such bounds with half the error probability each: an upper bound
  on early-exit errors and a lower bound on corrections. It saves more compute if early exits
  correct many errors of the last exit.

Assumptions: validation images and future images are independent draws from one distribution (for
`expectation`, exchangeable). The network and the family of thresholds were fixed without these
images; a checkpoint chosen as "best" on them violates this. The tolerance is chosen beforehand;
choosing among several results voids the guarantee. The default family is therefore not fitted: one
threshold for all exits, starting at "no image leaves early". If nothing is certified, the result is
that first row, the full network, whose excess error is zero.
"""

from collections.abc import Sequence

import numpy as np

from imta_jax.errors import InputError, unknown_name
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Int, Int8
from imta_jax.evaluation.budget import checked_outcomes, correct_at
from imta_jax.evaluation.thresholds import ALWAYS_LEAVE, NEVER_LEAVE, exit_of

GUARANTEES = ("expectation", "clipped", "net")


def common_thresholds(num_exits: int, steps: int = 400) -> Float32[np.ndarray, "R E"]:
    """One threshold for all exits, from no image to all images: a family that uses no data.

    The thresholds are evenly spaced in log odds, because most confidences are close to 1.

    Args:
      num_exits: E, at least 1.
      steps: number of rows R, at least 2.

    Returns:
      Thresholds that fall along the rows; the last exit always lets all images leave.

    Raises:
      ValueError: `num_exits` or `steps` is outside its range.
    """
    if num_exits < 1 or steps < 2:
        raise InputError(f"num_exits={num_exits}, steps={steps}; expected at least 1 and 2")
    odds = np.exp(np.linspace(15, -7, steps - 2))  # confidences from 1 - 3e-7 to 0.001
    falling = np.r_[NEVER_LEAVE, odds / (1 + odds), ALWAYS_LEAVE].astype(np.float32)
    family = np.repeat(falling[:, None], num_exits, axis=1)
    family[:, -1] = ALWAYS_LEAVE
    return family


def risk_controlled_thresholds(
    confidence: ArrayLike,
    correct: ArrayLike,
    tolerance_points: float | Sequence[float],
    *,
    guarantee: str = "clipped",
    confidence_level: float = 0.95,
    family: ArrayLike | None = None,
) -> Float32[np.ndarray, "*tolerances E"]:
    """The cheapest thresholds of a family that satisfy a guarantee (see the module docstring).

    Args:
      confidence: [E, N] finite confidences of validation images that were not used to choose
        anything else.
      correct: [E, N] booleans, whether each exit is correct.
      tolerance_points: allowed excess error relative to the last exit, in percentage points; a
        number or a sequence of them.
      guarantee: "expectation", "clipped" or "net".
      confidence_level: probability with which "clipped" and "net" hold, above 0 and below 1.
      family: [R, E] thresholds that fall along the rows, chosen without these images. The default
        is `common_thresholds`.

    Returns:
      Thresholds [E], or [tolerances, E]. If no thresholds are certified, those of the full network.

    Raises:
      ValueError: shapes that disagree, an unknown guarantee, a number outside its range, or a
        family whose rows do not fall.
    """
    confidence, correct = checked_outcomes(confidence, correct)
    _check_numbers(tolerance_points, guarantee, confidence_level)
    family = _checked_family(family, len(confidence))
    excess = excess_errors(correct, exit_of(confidence, family))
    tolerances = np.atleast_1d(np.asarray(tolerance_points, np.float64)) / 100
    certified = _certified(excess, tolerances, guarantee, 1 - confidence_level)
    certified[:, 0] = True  # The excess error of the full network is zero.
    last = np.logical_and.accumulate(certified, axis=1).sum(axis=1) - 1
    return family[last].reshape(*np.shape(tolerance_points), -1)


def excess_errors(
    correct: Bool[np.ndarray, "E N"], exits: Int[np.ndarray, "*points N"]
) -> Int8[np.ndarray, "*points N"]:
    """Error of each image relative to the last exit.

    Args:
      correct: whether each exit is correct.
      exits: exit that each image takes, from 0.

    Returns:
      1 for an early-exit error, -1 for an early-exit correction, 0 otherwise.
    """
    return correct[-1].astype(np.int8) - correct_at(exits, correct).astype(np.int8)


def binomial_upper_bound(count: ArrayLike, number: int, error: float) -> np.ndarray:
    """Clopper and Pearson's upper confidence bound of a binomial proportion.

    Args:
      count: [...] observed successes, 0..`number`.
      number: number of trials.
      error: probability that the bound is too low, above 0 and below 1.

    Returns:
      The bounds [...], 0..1.
    """
    from scipy.special import betaincinv  # Imported late because it is slow to import.

    count = np.asarray(count)
    bound = betaincinv(count + 1, np.maximum(number - count, 1), 1 - error)
    return np.where(count >= number, 1.0, bound)


def binomial_lower_bound(count: ArrayLike, number: int, error: float) -> np.ndarray:
    """Clopper and Pearson's lower confidence bound; arguments as in `binomial_upper_bound`."""
    return 1.0 - binomial_upper_bound(number - np.asarray(count), number, error)


def _certified(
    excess: Int8[np.ndarray, "R N"],
    tolerances: Float[np.ndarray, " T"],
    guarantee: str,
    error: float,
) -> Bool[np.ndarray, "T R"]:
    """Whether the risk bound of each row is within each tolerance."""
    number = excess.shape[1]
    errors = excess == 1
    if guarantee == "expectation":
        # The theorem needs a loss that never falls along the family. An image can be an early-exit
        # error at a strict threshold and not at a looser one, so it counts from the first on.
        num_errors = np.logical_or.accumulate(errors, axis=0).sum(axis=1)
        bound = (num_errors + 1) / (number + 1)
    elif guarantee == "clipped":
        bound = binomial_upper_bound(errors.sum(axis=1), number, error)
    else:
        corrections = (excess == -1).sum(axis=1)
        bound = binomial_upper_bound(errors.sum(axis=1), number, error / 2)
        bound = bound - binomial_lower_bound(corrections, number, error / 2)
    return bound[None, :] <= tolerances[:, None]


def _check_numbers(
    tolerance_points: float | Sequence[float], guarantee: str, confidence_level: float
) -> None:
    if guarantee not in GUARANTEES:
        raise unknown_name("guarantee", guarantee, GUARANTEES)
    if not 0 < confidence_level < 1:
        raise InputError(
            f"confidence_level={confidence_level}; expected above 0 and below 1, usually 0.95"
        )
    tolerances = np.asarray(tolerance_points, np.float64)
    if tolerances.ndim > 1 or not ((tolerances >= 0) & (tolerances <= 100)).all():
        raise InputError(
            f"tolerance_points={tolerance_points}; expected percentage points in 0..100, e.g. 1"
        )


def _checked_family(family: ArrayLike | None, num_exits: int) -> Float32[np.ndarray, "R E"]:
    """The family, with the full network as its first row."""
    full = common_thresholds(num_exits, 2)[:1]
    if family is None:
        return common_thresholds(num_exits)
    family = np.asarray(family, np.float32)
    if family.ndim != 2 or family.shape[1] != num_exits or not (np.diff(family, axis=0) <= 0).all():
        raise InputError(
            f"family of shape {family.shape}; expected thresholds [rows, {num_exits}] that fall "
            "along the rows, the strictest first"
        )
    return np.concatenate([full, family])
