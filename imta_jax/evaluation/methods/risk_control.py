"""Thresholds with a stated guarantee against the network's own last exit.

The risk. Per image, the *excess* of an adaptive answer is 1 if it is wrong where the last exit is
right, -1 if it is right where the last exit is wrong, else 0. Its mean R is the error that early
exits add, so "at most 1 point worse than the full network" is R <= 0.01. Clipped at zero per image
(loss 0 or 1) the mean is the share of images that early exits spoil; it is never below R, so a
bound on it bounds R and promises more.

Three guarantees, over the draw of the validation images:

- `expectation`: conformal risk control (Angelopoulos et al., ICLR 2024, Theorem 1). The clipped
  risk is at most the tolerance on average over validation sets; for yours it may be above.
- `clipped`: with the confidence asked for, the clipped risk of the thresholds returned is at most
  the tolerance. Upper confidence bounds in a fixed sequence from the strictest thresholds on (Bates
  et al., JACM 2021; Angelopoulos et al., "Learn then Test", 2021; for early exits Jazbec et al.,
  NeurIPS 2024). A loss of 0 or 1 makes the count binomial, so the bound is Clopper and Pearson's,
  exact where Hoeffding-Bentkus only approximates.
- `net`: the same for R itself, by two such bounds at half the risk of error each: spoilt images at
  most, mended ones at least. Cheaper where early exits mend many errors of the last one.

What they assume. Validation and future images are drawn alike and independently (for
`expectation`, exchangeably); network and family of thresholds were fixed without looking at these
images (a checkpoint chosen as "best" on them is not); a row is chosen for one tolerance named
beforehand: choosing among several answers voids the confidence. The family is therefore not fitted:
one threshold for all exits, from "nobody leaves early" down. If nothing is certified, that first
row, the full network, is the answer, and its excess is zero.
"""

from collections.abc import Sequence

import numpy as np

from imta_jax.errors import unknown_name
from imta_jax.evaluation.budget import checked_outcomes
from imta_jax.evaluation.thresholds import EVERYBODY_LEAVES, NOBODY_LEAVES, exit_of

GUARANTEES = ("expectation", "clipped", "net")


def common_thresholds(num_exits: int, steps: int = 400) -> np.ndarray:
    """One threshold for all exits, from nobody to everybody: a family that looks at no image.

    Even in the logarithm of the odds, as confidences crowd near 1.

    Args:
      num_exits: E.
      steps: number of rows R, at least 2.

    Returns:
      float32 [R, E], each row at most the one before; the last exit takes all that come.

    Raises:
      ValueError: fewer than one exit or two steps.
    """
    if num_exits < 1 or steps < 2:
        raise ValueError(f"{num_exits} exits and {steps} steps; expected at least 1 and 2")
    odds = np.exp(np.linspace(15, -7, steps - 2))  # confidences from 1 - 3e-7 to 0.001
    falling = np.r_[NOBODY_LEAVES, odds / (1 + odds), EVERYBODY_LEAVES].astype(np.float32)
    family = np.repeat(falling[:, None], num_exits, axis=1)
    family[:, -1] = EVERYBODY_LEAVES
    return family


def risk_controlled_thresholds(
    confidence: np.ndarray,
    correct: np.ndarray,
    tolerance_points: float | Sequence[float],
    *,
    guarantee: str = "clipped",
    confidence_level: float = 0.95,
    family: np.ndarray | None = None,
) -> np.ndarray:
    """The laxest thresholds of a family that keep a guarantee; see the module for what it says.

    Args:
      confidence: [E, N], of validation images on which nothing else was chosen; finite.
      correct: booleans [E, N], whether each exit is right.
      tolerance_points: [T], or one number: how many percentage points worse than the last exit.
      guarantee: `expectation`, `clipped` or `net`.
      confidence_level: probability with which `clipped` and `net` hold, above 0 and below 1.
      family: thresholds [R, E], each row at most the one before, chosen without these images;
        default, `common_thresholds`.

    Returns:
      float32 [T, E], or [E]; the full network where nothing else is certified.

    Raises:
      ValueError: shapes that disagree, an unknown guarantee, numbers outside their range, a family
        whose rows do not fall.
    """
    confidence, correct = checked_outcomes(confidence, correct)
    _check_numbers(tolerance_points, guarantee, confidence_level)
    family = _checked_family(family, len(confidence))
    excess = excess_errors(correct, exit_of(confidence, family))
    tolerances = np.atleast_1d(np.asarray(tolerance_points, np.float64)) / 100
    kept = _kept(excess, tolerances, guarantee, 1 - confidence_level)  # [T, R]
    kept[:, 0] = True  # the full network's excess is zero, whatever the bound says
    last = np.logical_and.accumulate(kept, axis=1).sum(axis=1) - 1
    return family[last].reshape(*np.shape(tolerance_points), -1)


def excess_errors(correct: np.ndarray, exits: np.ndarray) -> np.ndarray:
    """Errors beyond those of the last exit, image by image.

    Args:
      correct: booleans [E, N].
      exits: integers [..., N], exit that each image takes, from 0.

    Returns:
      int8 [..., N]: 1 spoilt (the last exit was right), -1 mended, 0 otherwise.
    """
    answers = correct[exits, np.arange(correct.shape[1])]
    return correct[-1].astype(np.int8) - answers.astype(np.int8)


def binomial_upper_bound(count: np.ndarray, number: int, error: float) -> np.ndarray:
    """Clopper and Pearson's: a share above it gives so few successes with at most this probability.

    Args:
      count: successes seen, 0 to `number`, any shape.
      number: trials.
      error: probability that the bound is too low, above 0 and below 1.

    Returns:
      The share's upper confidence bound, 0..1, of the shape of `count`.
    """
    count = np.asarray(count)
    from scipy.special import betaincinv  # not before it is needed: it takes a while

    most = betaincinv(count + 1, np.maximum(number - count, 1), 1 - error)
    return np.where(count >= number, 1.0, most)


def binomial_lower_bound(count: np.ndarray, number: int, error: float) -> np.ndarray:
    """The mirror image of `binomial_upper_bound`: successes and failures change places."""
    return 1.0 - binomial_upper_bound(number - np.asarray(count), number, error)


def _kept(excess: np.ndarray, tolerances: np.ndarray, guarantee: str, error: float) -> np.ndarray:
    """Whether each row of the family passes, [T, R], from its excess [R, N]."""
    number = excess.shape[1]
    spoilt = excess == 1
    if guarantee == "expectation":
        # The theorem needs a loss that never falls along the family. An image may be spoilt at a
        # strict threshold and not at a laxer one: it counts as spoilt from the first one on.
        ever = np.logical_or.accumulate(spoilt, axis=0).sum(axis=1)
        bound = (ever + 1) / (number + 1)
    elif guarantee == "clipped":
        bound = binomial_upper_bound(spoilt.sum(axis=1), number, error)
    else:
        mended = (excess == -1).sum(axis=1)
        bound = binomial_upper_bound(spoilt.sum(axis=1), number, error / 2)
        bound = bound - binomial_lower_bound(mended, number, error / 2)
    return bound[None, :] <= tolerances[:, None]


def _check_numbers(
    tolerance_points: float | Sequence[float], guarantee: str, confidence_level: float
) -> None:
    if guarantee not in GUARANTEES:
        raise unknown_name("guarantee", guarantee, GUARANTEES)
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence level {confidence_level}; expected 0 to 1, usually 0.95")
    tolerances = np.asarray(tolerance_points, np.float64)
    if tolerances.ndim > 1 or not ((tolerances >= 0) & (tolerances <= 100)).all():
        raise ValueError(
            f"tolerance of {tolerance_points} points; expected 0 to 100, e.g. 1 for at most one "
            "percentage point worse than the last exit"
        )


def _checked_family(family: np.ndarray | None, num_exits: int) -> np.ndarray:
    """The family with the full network as its first row."""
    full = common_thresholds(num_exits, 2)[:1]
    if family is None:
        return common_thresholds(num_exits)
    family = np.asarray(family, np.float32)
    if family.ndim != 2 or family.shape[1] != num_exits or not (np.diff(family, axis=0) <= 0).all():
        raise ValueError(
            f"family of shape {family.shape}; expected thresholds [rows, {num_exits}], each row at "
            "most the one before: begin with the strictest"
        )
    return np.concatenate([full, family])
