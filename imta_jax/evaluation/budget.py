"""Accuracy against compute: the sweep over budgets, the choice of a point, what each image gets.

"Budgeted batch classification" (paper section 4; MSDNet's sweep of geometric quotas). Thresholds
and the choice of an operating point see validation images only; test images are only ever measured.
The thresholds themselves are in `thresholds`, costs per exit in `costs`, per-image rows in
`records`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from imta_jax.evaluation.predictions import Predictions, checked_predictions, confidence, predicted
from imta_jax.evaluation.thresholds import (
    checked_confidence,
    exit_of,
    geometric_quota,
    thresholds_for_quota,
)

# Reference code: p/20 for p = 1..40, from "nearly all leave first" to "most reach the last exit".
DEFAULT_QUOTAS = tuple(p / 20 for p in range(1, 41))


class Outcomes(NamedTuple):
    """All that a sweep needs to know of a split.

    Attributes:
      confidence: float32 [E, N], highest softmax probability.
      correct: bool [E, N], whether the exit's prediction is right.
    """

    confidence: np.ndarray
    correct: np.ndarray


class Decisions(NamedTuple):
    """What the adaptive network answers to each image.

    Attributes:
      exit: int32 [N], index of the exit taken, from 0.
      prediction: int32 [N], class given there.
      confidence: float32 [N], confidence there.
      cost: [N], cumulative cost of that exit, in the unit and type of the costs given.
    """

    exit: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class BudgetCurve:
    """One point per budget, in the order of the sweep; costs in the unit of the costs given.

    Attributes:
      quota: float64 [B], the q of the geometric quota.
      thresholds: float32 [B, E], from validation images.
      validation_accuracy: float64 [B], percent.
      validation_cost: float64 [B], mean per validation image.
      validation_exit_fractions: float64 [B, E], of validation images; rows sum to 1.
      accuracy: float64 [B], percent, on test images.
      mean_cost: float64 [B], mean per test image.
      exit_fractions: float64 [B, E], of test images; rows sum to 1.
    """

    quota: np.ndarray
    thresholds: np.ndarray
    validation_accuracy: np.ndarray
    validation_cost: np.ndarray
    validation_exit_fractions: np.ndarray
    accuracy: np.ndarray
    mean_cost: np.ndarray
    exit_fractions: np.ndarray

    def rows(self, cost_name: str) -> list[dict[str, Any]]:
        """One JSON row per point, as `results.json` has them.

        Args:
          cost_name: key of the mean cost per test image, e.g. "mean_macs" or "mean_ms".

        Returns:
          B rows. `validation_` before a key marks the value on the validation images.
        """
        return [
            {
                "quota": self.quota[i].item(),
                "thresholds": self.thresholds[i].tolist(),
                cost_name: self.mean_cost[i].item(),
                f"validation_{cost_name}": self.validation_cost[i].item(),
                "validation_top1": self.validation_accuracy[i].item(),
                "top1": self.accuracy[i].item(),
                "exit_fractions": self.exit_fractions[i].tolist(),
                "validation_exit_fractions": self.validation_exit_fractions[i].tolist(),
            }
            for i in range(len(self.quota))
        ]


def budget_curve(
    validation: Predictions | tuple[np.ndarray, np.ndarray],
    test: Predictions | tuple[np.ndarray, np.ndarray],
    costs: object,
    *,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
) -> BudgetCurve:
    """Sweeps budgets: thresholds on the validation split, accuracy and cost on both.

    Args:
      validation: logits [E, N, K] and labels [N] of held-out images, preprocessed as test images.
      test: the same of the test images; they influence no threshold.
      costs: [E] cumulative cost of leaving at each exit, or an object whose `.macs` holds them.
      quotas: [B], the q of `geometric_quota` at each point.

    Returns:
      The curve, B points.

    Raises:
      ValueError: predictions or costs that cannot be used, or not of one network.
    """
    validation = checked_predictions(validation, "validation predictions")
    test = checked_predictions(test, "test predictions")
    if validation.logits.shape[2] != test.logits.shape[2]:
        raise ValueError(
            f"validation logits have {validation.logits.shape[2]} classes, test logits "
            f"{test.logits.shape[2]}; both must come from the same network"
        )
    return curve_of_outcomes(outcomes(validation), outcomes(test), costs, quotas=quotas)


def outcomes(predictions: Predictions) -> Outcomes:
    """Confidence and top-1 correctness of every exit: logits [E, N, K] -> two arrays [E, N]."""
    logits, labels = predictions
    return Outcomes(confidence(logits), predicted(logits) == labels[None, :])


def curve_of_outcomes(
    validation: Outcomes,
    test: Outcomes,
    costs: object,
    *,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
) -> BudgetCurve:
    """As `budget_curve`, for any confidence and any notion of correct (top-5, say).

    Raises:
      ValueError: splits or costs of different networks, confidences that are not finite, quotas
        that `geometric_quota` refuses.
    """
    validation, test = (checked_outcomes(*pair) for pair in (validation, test))
    num_exits = len(validation.confidence)
    if len(test.confidence) != num_exits:
        raise ValueError(
            f"validation outcomes have {num_exits} exits, test outcomes {len(test.confidence)}; "
            "both must come from the same network"
        )
    costs = checked_costs(costs, num_exits)
    quotas = np.asarray(quotas, np.float64)
    if quotas.ndim != 1 or quotas.size == 0:
        raise ValueError(
            f"quotas {quotas}; expected a sequence of positive numbers, e.g. 0.5, 1, 2"
        )
    thresholds = thresholds_for_quota(validation.confidence, geometric_quota(quotas, num_exits))
    return BudgetCurve(
        quotas,
        thresholds,
        *_measured(validation, thresholds, costs),
        *_measured(test, thresholds, costs),
    )


def rows_with_costs(
    rows: Sequence[Mapping[str, Any]], costs: object, cost_name: str
) -> list[dict[str, Any]]:
    """Budget curve rows with the same thresholds under other costs, e.g. milliseconds.

    Thresholds and accuracies do not depend on costs, so only the mean costs change.

    Args:
      rows: from `BudgetCurve.rows`, with the keys of a current `results.json`.
      costs: [E] cumulative cost per exit, or an object whose `.macs` holds them.
      cost_name: key of the mean cost per test image in the new rows.

    Returns:
      As many rows as given.

    Raises:
      ValueError: costs for another number of exits, or not cumulative.
    """
    costs = checked_costs(costs, len(rows[0]["exit_fractions"])).astype(np.float64)
    return [
        {
            "quota": row["quota"],
            "thresholds": row["thresholds"],
            cost_name: float(np.dot(row["exit_fractions"], costs)),
            f"validation_{cost_name}": float(np.dot(row["validation_exit_fractions"], costs)),
            "validation_top1": row["validation_top1"],
            "top1": row["top1"],
            "exit_fractions": row["exit_fractions"],
            "validation_exit_fractions": row["validation_exit_fractions"],
        }
        for row in rows
    ]


def decisions(
    confidence: np.ndarray, predictions: np.ndarray, costs: object, thresholds: np.ndarray
) -> Decisions:
    """What each image gets under one row of thresholds.

    Args:
      confidence: [E, N].
      predictions: integers [E, N], class that each exit would give (`predicted`).
      costs: [E] cumulative cost per exit, or an object whose `.macs` holds them.
      thresholds: [E].

    Returns:
      Exit, class, confidence and cost of each image, all [N].

    Raises:
      ValueError: arrays of different networks or splits, confidences that are not finite.
    """
    confidence = checked_confidence(confidence)
    predictions = np.asarray(predictions, np.int32)
    if predictions.shape != confidence.shape or np.ndim(thresholds) != 1:
        raise ValueError(
            f"confidence {confidence.shape}, predictions {predictions.shape} and thresholds "
            f"{np.shape(thresholds)}; expected [exits, images] twice and [exits]"
        )
    costs = checked_costs(costs, len(confidence))
    exits = exit_of(confidence, thresholds)
    images = np.arange(len(exits))
    return Decisions(exits, predictions[exits, images], confidence[exits, images], costs[exits])


def checked_costs(costs: object, num_exits: int) -> np.ndarray:
    """Costs as an array [E], their type kept; they are cumulative, so they never fall.

    Args:
      costs: [E] numbers, or an object whose `.macs` holds them.
      num_exits: E of the confidences or logits they are used with.

    Raises:
      ValueError: another number of exits, or costs that are not positive or fall along the exits.
    """
    costs = np.asarray(getattr(costs, "macs", costs))
    if costs.shape != (num_exits,):
        raise ValueError(
            f"costs of shape {costs.shape} with predictions of {num_exits} exits; expected "
            f"[{num_exits}]: do both belong to the same network?"
        )
    if not (np.isfinite(costs).all() and costs[0] > 0 and (np.diff(costs) >= 0).all()):
        raise ValueError(
            f"costs {costs} are not positive and rising; expected the cumulative cost of "
            "leaving at each exit (numpy.cumsum of the costs per stage)"
        )
    return costs


def checked_outcomes(confidence: np.ndarray, correct: np.ndarray) -> Outcomes:
    """Confidences [E, N] and booleans [E, N] as `Outcomes`.

    Raises:
      ValueError: shapes that disagree, no booleans, confidences that are not finite.
    """
    confidence, correct = checked_confidence(confidence), np.asarray(correct)
    if correct.shape != confidence.shape or correct.dtype != bool:
        raise ValueError(
            f"correct is {correct.dtype} {correct.shape} with confidence {confidence.shape}; "
            "expected booleans of the same shape [exits, images]"
        )
    return Outcomes(confidence, correct)


def _measured(
    split: Outcomes, thresholds: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy in percent [B], mean cost [B] and exit fractions [B, E] under thresholds [B, E]."""
    num_exits, num_images = split.confidence.shape
    exits = exit_of(split.confidence, thresholds)  # [B, N]
    accuracy = 100.0 * split.correct[exits, np.arange(num_images)[None, :]].mean(axis=1)
    counts = np.stack([(exits == i).sum(axis=1) for i in range(num_exits)], axis=1)
    return accuracy, counts @ costs / num_images, counts / num_images
