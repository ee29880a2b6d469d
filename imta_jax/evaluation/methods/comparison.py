"""All ways to choose where images leave, on the same logits, with confidence intervals.

| method | what is chosen on validation images | points |
|---|---|---|
| `sweep` | MSDNet's geometric sweep, the dearest point within the budget | per budget |
| `envelope` | the same sweep, the most accurate point within the budget | per budget |
| `temperature` | as `sweep`, on confidences scaled by a temperature per exit | per budget |
| `optimised` | a threshold per exit, for accuracy under the budget | per budget |
| `patience` | nothing: leave when so many exits in a row agree | per patience |
| `expectation`, `clipped`, `net` | a common threshold under a guarantee | per tolerance |

Whatever chose it, a point is the exit that each image takes: everything measured follows from that.
Test images are only ever measured. The accuracy's interval is Wilson's. Each point is also compared
with the sweep *at its own validation cost*, image by image, with a bootstrapped interval: between
two points of the sweep that is their mixture, one or the other by lot, so that no method gains by
merely using up its budget. The limits of the sweep, all at the first and all at the last exit, are
among its points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from imta_jax.evaluation.budget import DEFAULT_QUOTAS, checked_costs
from imta_jax.evaluation.methods.intervals import bootstrap_interval, wilson_interval
from imta_jax.evaluation.methods.monotone_frontier import envelope_points
from imta_jax.evaluation.methods.optimized import one_exit_thresholds, optimised_thresholds
from imta_jax.evaluation.methods.patience import patience_exits
from imta_jax.evaluation.methods.risk_control import GUARANTEES, risk_controlled_thresholds
from imta_jax.evaluation.methods.temperature import scaled_confidence, temperatures
from imta_jax.evaluation.predictions import (
    Predictions,
    checked_predictions,
    confidence,
    predicted,
)
from imta_jax.evaluation.thresholds import exit_of, geometric_quota, thresholds_for_quota

DEFAULT_BUDGETS = tuple(b / 20 for b in range(2, 20))
DEFAULT_TOLERANCES = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class MethodCurve:
    """The points of one method; costs in the unit of the costs given, accuracies in percent.

    Attributes:
      method: one of the module's table.
      settings: P mappings, what was asked for: `budget` (a fraction of the last exit's cost),
        `patience` (exits), or `tolerance_points` (and `confidence_level`).
      thresholds: float32 [P, E], or None where the method has none. Those of `temperature` are
        for scaled confidences, see `temperatures`.
      temperatures: float64 [E] by which the logits are to be divided, or None.
      validation_accuracy: float64 [P].
      validation_cost: float64 [P], mean per image.
      accuracy: float64 [P], on test images.
      accuracy_interval: float64 [P, 2].
      mean_cost: float64 [P], mean per test image.
      exit_fractions: float64 [P, E], of test images; rows sum to 1.
      gain: float64 [P], test accuracy minus the sweep's at equal validation cost, in points.
      gain_interval: float64 [P, 2].
    """

    method: str
    settings: tuple[dict[str, float], ...]
    thresholds: np.ndarray | None
    temperatures: np.ndarray | None
    validation_accuracy: np.ndarray
    validation_cost: np.ndarray
    accuracy: np.ndarray
    accuracy_interval: np.ndarray
    mean_cost: np.ndarray
    exit_fractions: np.ndarray
    gain: np.ndarray
    gain_interval: np.ndarray


class _Split(NamedTuple):
    """What is kept of a split's logits, each [E, N]."""

    confidence: np.ndarray
    scaled: np.ndarray
    classes: np.ndarray
    correct: np.ndarray


class _Rule(NamedTuple):
    """A method's points before they are measured: the exits [P, N] of both splits."""

    settings: Sequence[dict[str, float]]
    validation_exits: np.ndarray
    test_exits: np.ndarray
    thresholds: np.ndarray | None = None
    temperatures: np.ndarray | None = None


def compare_methods(
    validation: Predictions | tuple[np.ndarray, np.ndarray],
    test: Predictions | tuple[np.ndarray, np.ndarray],
    costs: object,
    budgets: Sequence[float] = DEFAULT_BUDGETS,
    *,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    confidence_level: float = 0.95,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MethodCurve]:
    """Chooses by every method on validation images and measures on test images.

    Args:
      validation: logits [E, N, K] and labels [N] of held-out images, preprocessed as test images.
      test: the same of the test images.
      costs: [E] cumulative cost of leaving at each exit, or an object whose `.macs` holds them.
      budgets: mean costs allowed, as fractions of the last exit's cost.
      tolerances: of the guarantees, in percentage points of accuracy.
      confidence_level: of the guarantees and of the intervals.
      quotas: of the sweep, see `geometric_quota`.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      The methods' curves by name.

    Raises:
      ValueError: predictions or costs that cannot be used or are not of one network, a budget
        below the first exit's cost.
    """
    validation = checked_predictions(validation, "validation predictions")
    test = checked_predictions(test, "test predictions")
    if validation.logits.shape[::2] != test.logits.shape[::2]:
        raise ValueError(
            f"validation logits have shape {validation.logits.shape}, test logits "
            f"{test.logits.shape}; both must have the exits and classes of the same network"
        )
    costs = checked_costs(costs, len(validation.logits)).astype(np.float64)
    budgets = checked_budgets(budgets, costs)
    heat = temperatures(*validation)
    splits = _split(validation, heat), _split(test, heat)
    sweep = _sweep(splits[0].confidence, quotas)
    rules = _budget_rules(splits, costs, budgets, sweep, quotas, heat)
    rules["patience"] = _patience_rule(splits)
    for guarantee in GUARANTEES:
        rules[guarantee] = _guaranteed_rule(splits, tolerances, guarantee, confidence_level)
    intervals = {"level": confidence_level, "resamples": resamples, "seed": seed}
    return _measured(rules, _by_thresholds((), sweep, splits), splits, costs, intervals)


def checked_budgets(budgets: Sequence[float], costs: np.ndarray) -> np.ndarray:
    """Budgets [B] as an array.

    Raises:
      ValueError: none, or one that is not above the first exit's share of the cost and at most 1.
    """
    budgets, least = np.asarray(budgets, np.float64), costs[0] / costs[-1]
    usable = (budgets >= least * (1 - 1e-12)) & (budgets <= 1)
    if budgets.ndim != 1 or budgets.size == 0 or not usable.all():
        raise ValueError(
            f"budgets {budgets.tolist()}; expected fractions of the last exit's cost, from "
            f"{np.ceil(1e4 * least) / 1e4:.4f} (all leave at the first exit) to 1"
        )
    return budgets


def _split(predictions: Predictions, heat: np.ndarray) -> _Split:
    logits, labels = predictions
    classes = predicted(logits)
    scaled = scaled_confidence(logits, heat)
    return _Split(confidence(logits), scaled, classes, classes == labels[None, :])


def _sweep(confidence: np.ndarray, quotas: Sequence[float]) -> np.ndarray:
    """Thresholds [Q + 2, E] of the sweep, with all at the first and all at the last exit."""
    ends = one_exit_thresholds(len(confidence))[[0, -1]]
    quota = geometric_quota(np.asarray(quotas, np.float64), len(confidence))
    return np.concatenate([ends[:1], thresholds_for_quota(confidence, quota), ends[1:]])


def _by_thresholds(
    settings: Sequence[dict[str, float]],
    thresholds: np.ndarray,
    splits: tuple[_Split, _Split],
    heat: np.ndarray | None = None,
) -> _Rule:
    exits = (exit_of(s.confidence if heat is None else s.scaled, thresholds) for s in splits)
    return _Rule(settings, *exits, thresholds, heat)


def _budget_rules(
    splits: tuple[_Split, _Split],
    costs: np.ndarray,
    budgets: np.ndarray,
    sweep: np.ndarray,
    quotas: Sequence[float],
    heat: np.ndarray,
) -> dict[str, _Rule]:
    """The methods that are given a budget."""
    validation, asked = splits[0], [{"budget": float(b)} for b in budgets]
    limits = budgets * costs[-1]
    accuracy, cost = _accuracy_and_cost(
        exit_of(validation.confidence, sweep), validation.correct, costs
    )
    envelope = envelope_points(cost, accuracy)
    affordable = np.searchsorted(np.sort(cost), limits * (1 + 1e-12), side="right") - 1
    best = optimised_thresholds(
        validation.confidence, validation.correct, costs, limits, starts=sweep
    )
    warm = _sweep(validation.scaled, quotas)
    warm_cost = _accuracy_and_cost(exit_of(validation.scaled, warm), validation.correct, costs)[1]
    return {
        "sweep": _by_thresholds(asked, sweep[_dearest(cost, limits)], splits),
        "envelope": _by_thresholds(asked, sweep[envelope[affordable]], splits),
        "temperature": _by_thresholds(asked, warm[_dearest(warm_cost, limits)], splits, heat),
        "optimised": _by_thresholds(asked, best, splits),
    }


def _dearest(cost: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """For each limit [B] the index of the highest cost [S] within it."""
    within = cost[None, :] <= limits[:, None] * (1 + 1e-12)
    return np.where(within, cost[None, :], -np.inf).argmax(axis=1)


def _patience_rule(splits: tuple[_Split, _Split]) -> _Rule:
    asked = [{"patience": p} for p in range(1, len(splits[0].classes) + 1)]
    exits = (np.stack([patience_exits(s.classes, p["patience"]) for p in asked]) for s in splits)
    return _Rule(asked, *exits)


def _guaranteed_rule(
    splits: tuple[_Split, _Split], tolerances: Sequence[float], guarantee: str, level: float
) -> _Rule:
    asked = [{"tolerance_points": float(t)} for t in tolerances]
    if guarantee != "expectation":
        asked = [row | {"confidence_level": level} for row in asked]
    validation = splits[0]
    thresholds = risk_controlled_thresholds(
        validation.confidence,
        validation.correct,
        tolerances,
        guarantee=guarantee,
        confidence_level=level,
    )
    return _by_thresholds(asked, thresholds, splits)


def _accuracy_and_cost(
    exits: np.ndarray, correct: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy in percent and mean cost, [P], of exits [P, N]."""
    return 100.0 * _answers(exits, correct).mean(axis=1), costs[exits].mean(axis=1)


def _answers(exits: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Whether each image is answered right, bool [P, N]."""
    return correct[exits, np.arange(exits.shape[1])[None, :]]


def _measured(
    rules: Mapping[str, _Rule],
    sweep: _Rule,
    splits: tuple[_Split, _Split],
    costs: np.ndarray,
    intervals: Mapping[str, Any],
) -> dict[str, MethodCurve]:
    """Everything that follows from the exits, the bootstrap for all methods at once."""
    validation, test = splits
    cost = {name: costs[rule.validation_exits].mean(axis=1) for name, rule in rules.items()}
    right = {name: _answers(rule.test_exits, test.correct) for name, rule in rules.items()}
    sweep_cost = costs[sweep.validation_exits].mean(axis=1)
    sweep_right = _answers(sweep.test_exits, test.correct)
    differences = {n: right[n] - _mixed(sweep_cost, sweep_right, cost[n]) for n in rules}
    ends = 100.0 * bootstrap_interval(np.concatenate(list(differences.values())), **intervals)
    starts = np.cumsum([len(c) for c in cost.values()])[:-1]
    ends = dict(zip(rules, np.split(ends, starts), strict=True))
    return {
        name: MethodCurve(
            name,
            tuple(rule.settings),
            rule.thresholds,
            rule.temperatures,
            100.0 * _answers(rule.validation_exits, validation.correct).mean(axis=1),
            cost[name],
            100.0 * right[name].mean(axis=1),
            100.0
            * wilson_interval(right[name].mean(axis=1), right[name].shape[1], intervals["level"]),
            costs[rule.test_exits].mean(axis=1),
            np.stack([(rule.test_exits == e).mean(axis=1) for e in range(len(costs))], axis=1),
            100.0 * differences[name].mean(axis=1, dtype=np.float64),
            ends[name],
        )
        for name, rule in rules.items()
    }


def _mixed(sweep_cost: np.ndarray, sweep_right: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Chance that the sweep is right on each image at costs [P] between those of its points [S].

    Returns float32 [P, N]; the points' costs reach from the first exit's to the last exit's.
    """
    order = np.argsort(sweep_cost, kind="stable")
    rising, right = sweep_cost[order], sweep_right[order].astype(np.float32)
    upper = np.clip(np.searchsorted(rising, wanted), 1, len(rising) - 1)
    gap = rising[upper] - rising[upper - 1]
    share = np.where(gap > 0, (wanted - rising[upper - 1]) / np.where(gap > 0, gap, 1.0), 1.0)
    share = np.clip(share, 0.0, 1.0).astype(np.float32)[:, None]
    return right[upper] * share + right[upper - 1] * (1 - share)
