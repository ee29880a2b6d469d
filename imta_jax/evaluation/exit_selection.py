"""Cost-aware exits: at which exits stopping saves time, given measured times and saved logits.

Stopping at an exit costs time for all images that reach it (compaction, a host sync) and saves the
later stages for those that leave. Dynamic programming finds the exits to keep. It assumes that an
image that is confident at an exit is confident at every later one; the result is then measured on
the validation images without that assumption.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_shapes import Bool, Float
from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.thresholds import geometric_quota, thresholds_for_quota

_QUOTAS = np.geomspace(0.05, 8, 40)
# Trade-offs: milliseconds per percent of accuracy, relative to the full network's time.
_MS_PER_PERCENT = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)


class ExitSelection(NamedTuple):
    """The exits to keep for a budget.

    Attributes:
      budget_ms: mean milliseconds per image.
      kept: indices of the exits, from 0; the last exit is always kept.
      thresholds: per exit; infinite at exits that are not kept.
      mean_ms: mean milliseconds per validation image.
      accuracy: top-1 accuracy on the validation images, percent.
    """

    budget_ms: float
    kept: tuple[int, ...]
    thresholds: tuple[float, ...]
    mean_ms: float
    accuracy: float


class _Candidate(NamedTuple):
    kept: tuple[int, ...]
    thresholds: Float[np.ndarray, " E"]
    mean_ms: float
    accuracy: float


def select_exits(
    validation: Outcomes,
    stage_ms: Float[np.ndarray, " E"],
    stop_ms: Float[np.ndarray, " E-1"],
    budgets: Sequence[float],
) -> list[ExitSelection]:
    """Chooses for each budget the exits and thresholds of the highest validation accuracy.

    Args:
      validation: outcomes of all exits.
      stage_ms: milliseconds per image of each stage with its exit, the stop before it included.
      stop_ms: the part of these that is saved by not stopping after each exit but the last.
      budgets: fractions of the time of the full network in one piece.

    Returns:
      One selection per budget, in the order of the budgets; budgets below all selections are left
      out.

    Raises:
      ValueError: times that are not one per exit.
    """
    num_exits = len(validation.confidence)
    if (len(stage_ms), len(stop_ms)) != (num_exits, num_exits - 1):
        raise InputError(
            f"stage_ms and stop_ms have {len(stage_ms)} and {len(stop_ms)} values; expected "
            f"{num_exits} and {num_exits - 1} for {num_exits} exits"
        )
    full_ms = float(stage_ms.sum() - stop_ms.sum())
    candidates = _candidates(validation, stage_ms, stop_ms, full_ms)
    selections = []
    for budget in budgets:
        affordable = [c for c in candidates if c.mean_ms <= budget * full_ms]
        if affordable:
            kept, thresholds, ms, accuracy = max(affordable, key=lambda c: (c.accuracy, -c.mean_ms))
            limits = np.where(np.isin(np.arange(num_exits), kept), thresholds, np.inf)
            selections.append(
                ExitSelection(budget * full_ms, kept, tuple(map(float, limits)), ms, accuracy)
            )
    return selections


def _candidates(
    validation: Outcomes,
    stage_ms: Float[np.ndarray, " E"],
    stop_ms: Float[np.ndarray, " E-1"],
    full_ms: float,
) -> list[_Candidate]:
    """The best exits for each set of thresholds and each trade-off of time and accuracy."""
    quotas = geometric_quota(_QUOTAS, len(validation.confidence))
    candidates = []
    for thresholds in thresholds_for_quota(validation.confidence, quotas):
        confident = validation.confidence >= thresholds[:, None]
        confident[-1] = True
        for ms_per_percent in _MS_PER_PERCENT:
            kept = _best_exits(
                confident, validation.correct, stage_ms, stop_ms, 100 * ms_per_percent * full_ms
            )
            measured = _measured(kept, confident, validation, stage_ms, stop_ms)
            candidates.append(_Candidate(kept, thresholds, *measured))
    return candidates


def exits_never_kept(selections: Sequence[ExitSelection], num_exits: int) -> list[int]:
    """Indices of the exits that no selection keeps: stopping there never pays."""
    kept = {i for selection in selections for i in selection.kept}
    return [i for i in range(num_exits) if i not in kept]


def _best_exits(
    confident: Bool[np.ndarray, "E N"],
    correct: Bool[np.ndarray, "E N"],
    stage_ms: Float[np.ndarray, " E"],
    stop_ms: Float[np.ndarray, " E-1"],
    error_ms: float,
) -> tuple[int, ...]:
    """The exits of the least expected time plus `error_ms` per wrong image.

    least[j] is the least cost up to exit j, if j is kept; the images that are not confident at the
    kept exit before it run the stages between.
    """
    num_exits = len(stage_ms)
    least, before = np.full(num_exits, np.inf), np.full(num_exits, -1)
    for j in range(num_exits):
        for i in range(-1, j):
            remaining = ~confident[i] if i >= 0 else np.ones_like(confident[0])
            ms = remaining.mean() * (stage_ms[i + 1 : j + 1].sum() - stop_ms[i + 1 : j].sum())
            errors = (remaining & confident[j] & ~correct[j]).mean()
            cost = (least[i] if i >= 0 else 0.0) + ms + error_ms * errors
            if cost < least[j]:
                least[j], before[j] = cost, i
    kept, j = [], num_exits - 1
    while j >= 0:
        kept.append(j)
        j = int(before[j])
    return tuple(reversed(kept))


def _measured(
    kept: tuple[int, ...],
    confident: Bool[np.ndarray, "E N"],
    outcomes: Outcomes,
    stage_ms: Float[np.ndarray, " E"],
    stop_ms: Float[np.ndarray, " E-1"],
) -> tuple[float, float]:
    """Mean milliseconds and accuracy in percent, if images leave at the kept exits only."""
    kept_exits = np.asarray(kept)
    # The first kept exit that is confident.
    exits = kept_exits[confident[kept_exits].argmax(axis=0)]
    # Stages up to each exit, without the stops at the exits before it that are not kept.
    skipped = np.where(np.isin(np.arange(len(stop_ms)), kept_exits), 0.0, stop_ms)
    exit_ms = np.cumsum(stage_ms) - np.concatenate([[0.0], np.cumsum(skipped)])
    correct = outcomes.correct[exits, np.arange(len(exits))]
    return float(exit_ms[exits].mean()), 100 * float(correct.mean())
