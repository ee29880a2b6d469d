"""The exits that each threshold method selects, on both splits.

| method | chosen on validation images | points |
|---|---|---|
| `sweep` | MSDNet's geometric sweep, the costliest point within the budget | per budget |
| `envelope` | the same sweep, the most accurate point within the budget | per budget |
| `optimised` | one threshold per exit, for accuracy under the budget | per budget |
| `temperature` | like `sweep`, on confidences scaled by a temperature per exit | per budget |
| `ensemble`, `gate` | see `fitted` | per budget |
| `patience` | nothing: leave when several exits in a row agree | per patience |
| `expectation`, `clipped`, `net` | one common threshold under a guarantee | per tolerance |

`envelope` is the monotone frontier. `optimised` is the name in result files; tables and the command
line have `optimized`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Float64, Int, Int32
from imta_jax.evaluation.budget import correct_at
from imta_jax.evaluation.methods.monotone_frontier import frontier_indices
from imta_jax.evaluation.methods.optimized import one_exit_thresholds, optimized_thresholds
from imta_jax.evaluation.methods.patience import patience_exits
from imta_jax.evaluation.methods.risk_control import GUARANTEES, risk_controlled_thresholds
from imta_jax.evaluation.methods.temperature import scaled_confidence
from imta_jax.evaluation.predictions import Predictions, confidence, predicted
from imta_jax.evaluation.thresholds import exit_of, geometric_quota, thresholds_for_quota

# Relative tolerance of budgets against sums of costs.
_ROUNDING = 1e-12


class SplitOutcomes(NamedTuple):
    """Outcomes of a split, from its logits, that the methods use.

    Attributes:
      confidence: highest softmax probability, or another score that thresholds apply to.
      correct: whether the predicted class is the label.
      scaled: the confidence after temperature scaling; None without logits.
      classes: predicted class; None without logits.
    """

    confidence: Float32[np.ndarray, "E N"]
    correct: Bool[np.ndarray, "E N"]
    scaled: Float32[np.ndarray, "E N"] | None = None
    classes: Int32[np.ndarray, "E N"] | None = None


class Splits(NamedTuple):
    """The outcomes on both splits."""

    validation: SplitOutcomes
    test: SplitOutcomes


class Selection(NamedTuple):
    """The exits that a method selects for P settings.

    Attributes:
      settings: P mappings, e.g. `{"budget": 0.5}`.
      validation_exits: exit of each validation image, from 0.
      test_exits: exit of each test image, from 0.
      thresholds: None if the method has none.
      temperatures: None if the method does not scale confidences.
      outcomes: those of the method, if it has its own predictions or validation images.
      costs: cumulative cost per exit with the method's own computation, if it has any.
    """

    settings: Sequence[Mapping[str, float]]
    validation_exits: Int[np.ndarray, "P N"]
    test_exits: Int[np.ndarray, "P M"]
    thresholds: Float32[np.ndarray, "P E"] | None = None
    temperatures: Float[np.ndarray, " E"] | None = None
    outcomes: Splits | None = None
    costs: Float64[np.ndarray, " E"] | None = None


def split_outcomes(predictions: Predictions, temperature: Float[np.ndarray, " E"]) -> SplitOutcomes:
    """Confidences, scaled confidences, classes and correctness of a split."""
    logits, labels = predictions
    classes = predicted(logits)
    scaled = scaled_confidence(logits, temperature)
    return SplitOutcomes(confidence(logits), classes == labels[None, :], scaled, classes)


def sweep_thresholds(
    confidence: Float32[np.ndarray, "E N"], quotas: Sequence[float]
) -> Float32[np.ndarray, "S E"]:
    """Thresholds of the geometric sweep, between its limits: all at the first, all at the last."""
    limits = one_exit_thresholds(len(confidence))[[0, -1]]
    quota = geometric_quota(np.asarray(quotas, np.float64), len(confidence))
    return np.concatenate([limits[:1], thresholds_for_quota(confidence, quota), limits[1:]])


def select_by_thresholds(
    settings: Sequence[Mapping[str, float]],
    thresholds: Float32[np.ndarray, "P E"],
    splits: Splits,
    temperature: Float[np.ndarray, " E"] | None = None,
) -> Selection:
    """Applies thresholds to both splits, to scaled confidences if a temperature is given."""
    validation_exits, test_exits = (
        exit_of(s.confidence if temperature is None else _scaled(s), thresholds) for s in splits
    )
    return Selection(settings, validation_exits, test_exits, thresholds, temperature)


def select_by_budget(
    splits: Splits,
    costs: Float[np.ndarray, " E"],
    budgets: Float[np.ndarray, " B"],
    quotas: Sequence[float],
) -> dict[str, Selection]:
    """The methods whose setting is a budget, a fraction of the last exit's cost."""
    validation, settings = splits.validation, [{"budget": float(b)} for b in budgets]
    limits = budgets * costs[-1]
    sweep = sweep_thresholds(validation.confidence, quotas)
    exits = exit_of(validation.confidence, sweep)
    accuracy, cost = correct_at(exits, validation.correct).mean(axis=1), costs[exits].mean(axis=1)
    frontier = frontier_indices(cost, accuracy)
    within = np.searchsorted(np.sort(cost), limits * (1 + _ROUNDING), side="right") - 1
    optimized = optimized_thresholds(
        validation.confidence, validation.correct, costs, limits, starts=sweep
    )
    return {
        "sweep": select_by_thresholds(settings, sweep[costliest_within(cost, limits)], splits),
        "envelope": select_by_thresholds(settings, sweep[frontier[within]], splits),
        "optimised": select_by_thresholds(settings, optimized, splits),
    }


def select_by_temperature(
    splits: Splits,
    costs: Float[np.ndarray, " E"],
    budgets: Float[np.ndarray, " B"],
    quotas: Sequence[float],
    temperature: Float[np.ndarray, " E"],
) -> Selection:
    """The sweep on scaled confidences, with one point per budget."""
    scaled = _scaled(splits.validation)
    thresholds = sweep_thresholds(scaled, quotas)
    cost = costs[exit_of(scaled, thresholds)].mean(axis=1)
    chosen = thresholds[costliest_within(cost, budgets * costs[-1])]
    settings = [{"budget": float(b)} for b in budgets]
    return select_by_thresholds(settings, chosen, splits, temperature)


def select_by_patience(splits: Splits) -> Selection:
    """Patience, with one point per number of exits that must agree."""
    patiences = range(1, len(splits.validation.confidence) + 1)
    validation_exits, test_exits = (
        np.stack([patience_exits(_classes(s), p) for p in patiences]) for s in splits
    )
    return Selection([{"patience": p} for p in patiences], validation_exits, test_exits)


def select_by_guarantee(
    splits: Splits, tolerances: Sequence[float], level: float
) -> dict[str, Selection]:
    """The methods with a guarantee, with one point per tolerance in percentage points."""
    validation, selections = splits.validation, {}
    for guarantee in GUARANTEES:
        settings: Sequence[Mapping[str, float]] = [
            {"tolerance_points": float(t)} for t in tolerances
        ]
        if guarantee != "expectation":
            settings = [{**setting, "confidence_level": level} for setting in settings]
        thresholds = risk_controlled_thresholds(
            validation.confidence,
            validation.correct,
            tolerances,
            guarantee=guarantee,
            confidence_level=level,
        )
        selections[guarantee] = select_by_thresholds(settings, thresholds, splits)
    return selections


def costliest_within(
    cost: Float[np.ndarray, " S"], limits: Float[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """For each limit, the index of the highest cost within it, or of the lowest cost."""
    within = cost[None, :] <= limits[:, None] * (1 + _ROUNDING)
    costliest = np.where(within, cost[None, :], -np.inf).argmax(axis=1)
    return np.where(within.any(axis=1), costliest, cost.argmin())


def _scaled(split: SplitOutcomes) -> Float32[np.ndarray, "E N"]:
    assert split.scaled is not None  # the split has logits
    return split.scaled


def _classes(split: SplitOutcomes) -> Int32[np.ndarray, "E N"]:
    assert split.classes is not None  # the split has logits
    return split.classes
