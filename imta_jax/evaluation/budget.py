"""Accuracy against compute: a sweep over budgets, and the decisions under one set of thresholds.

"Budgeted batch classification" (paper section 4; MSDNet's sweep of geometric quotas). Thresholds
are chosen on validation images only. Test images are only measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Float64, Int, Int32, Num
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
    """Confidence and correctness of every exit on a split.

    Attributes:
      confidence: highest softmax probability.
      correct: whether the exit's prediction is correct.
    """

    confidence: Float32[np.ndarray, "E N"]
    correct: Bool[np.ndarray, "E N"]


class Decisions(NamedTuple):
    """Exit and prediction of the adaptive network for each image.

    Attributes:
      exit: exit that the image takes, from 0.
      prediction: class predicted at that exit.
      confidence: confidence at that exit.
      cost: cumulative cost of that exit, in the unit and type of the given costs.
    """

    exit: Int32[np.ndarray, " N"]
    prediction: Int32[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    cost: Num[np.ndarray, " N"]


@dataclass(frozen=True)
class BudgetCurve:
    """B points of a budget sweep, in the order of the sweep.

    Costs have the unit of the given costs.

    Attributes:
      quota: q of the geometric quota.
      thresholds: exit thresholds, chosen on validation images.
      validation_accuracy: percent.
      validation_cost: mean per validation image.
      validation_exit_fractions: fraction of the validation images per exit; rows sum to 1.
      accuracy: percent, on test images.
      mean_cost: mean per test image.
      exit_fractions: fraction of the test images per exit; rows sum to 1.
    """

    quota: Float64[np.ndarray, " B"]
    thresholds: Float32[np.ndarray, "B E"]
    validation_accuracy: Float64[np.ndarray, " B"]
    validation_cost: Float64[np.ndarray, " B"]
    validation_exit_fractions: Float64[np.ndarray, "B E"]
    accuracy: Float64[np.ndarray, " B"]
    mean_cost: Float64[np.ndarray, " B"]
    exit_fractions: Float64[np.ndarray, "B E"]

    def rows(self, cost_name: str) -> list[dict[str, Any]]:
        """One JSON row per point, as `results.json` has them.

        Args:
          cost_name: key of the mean cost per test image, e.g. "mean_macs" or "mean_ms".

        Returns:
          B rows. The prefix `validation_` marks values on the validation images.
        """
        attributes = _row_attributes(cost_name)
        return [
            {key: getattr(self, name)[i].tolist() for key, name in attributes.items()}
            for i in range(len(self.quota))
        ]


def _row_attributes(cost_name: str) -> dict[str, str]:
    """Key in a row of `results.json` -> attribute of `BudgetCurve`, in the order of the keys."""
    return {
        "quota": "quota",
        "thresholds": "thresholds",
        cost_name: "mean_cost",
        f"validation_{cost_name}": "validation_cost",
        "validation_top1": "validation_accuracy",
        "top1": "accuracy",
        "exit_fractions": "exit_fractions",
        "validation_exit_fractions": "validation_exit_fractions",
    }


def budget_curve(
    validation: Predictions | tuple[ArrayLike, ArrayLike],
    test: Predictions | tuple[ArrayLike, ArrayLike],
    costs: object,
    *,
    quotas: ArrayLike = DEFAULT_QUOTAS,
) -> BudgetCurve:
    """Sweeps budgets: thresholds from the validation split, accuracy and cost on both splits.

    Args:
      validation: logits [E, N, K] and labels [N] of validation images, preprocessed like test
        images.
      test: logits and labels of the test images. They do not influence thresholds.
      costs: [E] cumulative cost of leaving at each exit, or an object with these as `.macs`.
      quotas: [B] values q of `geometric_quota`, one per point.

    Returns:
      The curve, B points.

    Raises:
      ValueError: invalid predictions, costs or quotas, or splits of different networks.
    """
    validation = checked_predictions(validation, "validation predictions")
    test = checked_predictions(test, "test predictions")
    if validation.logits.shape[2] != test.logits.shape[2]:
        raise InputError(
            f"validation logits have {validation.logits.shape[2]} classes, test logits "
            f"{test.logits.shape[2]}; both must come from the same network"
        )
    return curve_of_outcomes(outcomes(validation), outcomes(test), costs, quotas=quotas)


def outcomes(predictions: Predictions) -> Outcomes:
    """Confidence and top-1 correctness of every exit."""
    logits, labels = predictions
    return Outcomes(confidence(logits), predicted(logits) == labels[None, :])


def curve_of_outcomes(
    validation: Outcomes,
    test: Outcomes,
    costs: object,
    *,
    quotas: ArrayLike = DEFAULT_QUOTAS,
) -> BudgetCurve:
    """Like `budget_curve`, for any confidence and any definition of correct, e.g. top-5.

    Raises:
      ValueError: splits or costs of different networks, confidences that are not finite, or quotas
        that `geometric_quota` rejects.
    """
    validation, test = (checked_outcomes(*split) for split in (validation, test))
    num_exits = len(validation.confidence)
    if len(test.confidence) != num_exits:
        raise InputError(
            f"validation outcomes have {num_exits} exits, test outcomes {len(test.confidence)}; "
            "both must come from the same network"
        )
    costs = checked_costs(costs, num_exits)
    quotas = np.asarray(quotas, np.float64)
    if quotas.ndim != 1 or quotas.size == 0:
        raise InputError(
            f"quotas={quotas}; expected a sequence of positive numbers, e.g. 0.5, 1, 2"
        )
    thresholds = thresholds_for_quota(validation.confidence, geometric_quota(quotas, num_exits))
    return BudgetCurve(
        quotas,
        thresholds,
        *_measure(validation, thresholds, costs),
        *_measure(test, thresholds, costs),
    )


def rows_with_costs(
    rows: Sequence[Mapping[str, Any]], costs: object, cost_name: str
) -> list[dict[str, Any]]:
    """Budget curve rows with the same thresholds under other costs, e.g. milliseconds.

    Thresholds and accuracies do not depend on costs, so only the mean costs change.

    Args:
      rows: rows of `BudgetCurve.rows` or `read_budget_curve`.
      costs: [E] cumulative cost per exit, or an object with these as `.macs`.
      cost_name: key of the mean cost per test image in the new rows.

    Returns:
      As many rows as given.

    Raises:
      ValueError: costs for another number of exits, or not cumulative.
    """
    costs = checked_costs(costs, len(rows[0]["exit_fractions"])).astype(np.float64)
    fractions = {
        cost_name: "exit_fractions",
        f"validation_{cost_name}": "validation_exit_fractions",
    }
    return [
        {
            key: float(np.dot(row[fractions[key]], costs)) if key in fractions else row[key]
            for key in _row_attributes(cost_name)
        }
        for row in rows
    ]


def decisions(
    confidence: ArrayLike, predictions: ArrayLike, costs: object, thresholds: ArrayLike
) -> Decisions:
    """Exit, class, confidence and cost of each image under one set of thresholds.

    Args:
      confidence: [E, N].
      predictions: [E, N] predicted class of each exit (see `predicted`).
      costs: [E] cumulative cost per exit, or an object with these as `.macs`.
      thresholds: [E].

    Returns:
      The decisions, one per image.

    Raises:
      ValueError: arrays of different networks or splits, or confidences that are not finite.
    """
    confidence = checked_confidence(confidence)
    predictions = np.asarray(predictions, np.int32)
    if predictions.shape != confidence.shape or np.ndim(thresholds) != 1:
        raise InputError(
            f"confidence {confidence.shape}, predictions {predictions.shape} and thresholds "
            f"{np.shape(thresholds)}; expected [exits, images] for two and [exits]"
        )
    costs = checked_costs(costs, len(confidence))
    exits = exit_of(confidence, thresholds)
    images = np.arange(len(exits))
    return Decisions(exits, predictions[exits, images], confidence[exits, images], costs[exits])


def checked_costs(costs: object, num_exits: int) -> Num[np.ndarray, " E"]:
    """Checks cumulative costs and converts them to an array of the same type.

    Args:
      costs: [E] numbers, or an object with these as `.macs`.
      num_exits: E of the confidences or logits.

    Returns:
      The costs.

    Raises:
      ValueError: costs for another number of exits, not positive, or falling along the exits.
    """
    costs = np.asarray(getattr(costs, "macs", costs))
    if costs.shape != (num_exits,):
        raise InputError(
            f"costs of shape {costs.shape} with predictions of {num_exits} exits; expected "
            f"[{num_exits}]: do both belong to the same network?"
        )
    if not (np.isfinite(costs).all() and costs[0] > 0 and (np.diff(costs) >= 0).all()):
        raise InputError(
            f"costs={costs}; expected the positive, cumulative cost of leaving at each exit "
            "(numpy.cumsum of the costs per stage)"
        )
    return costs


def checked_outcomes(confidence: ArrayLike, correct: ArrayLike) -> Outcomes:
    """Checks confidences [E, N] and booleans [E, N].

    Raises:
      ValueError: shapes that disagree, `correct` that is not boolean, or confidences that are not
        finite.
    """
    confidence, correct = checked_confidence(confidence), np.asarray(correct)
    if correct.shape != confidence.shape or correct.dtype != bool:
        raise InputError(
            f"correct is {correct.dtype} {correct.shape} with confidence {confidence.shape}; "
            "expected booleans of the same shape [exits, images]"
        )
    return Outcomes(confidence, correct)


def correct_at(
    exits: Int[np.ndarray, "*points N"], correct: Bool[np.ndarray, "E N"]
) -> Bool[np.ndarray, "*points N"]:
    """Whether the prediction of the exit that each image takes is correct."""
    return correct[exits, np.arange(correct.shape[1])]


def _measure(
    split: Outcomes, thresholds: Float32[np.ndarray, "B E"], costs: Num[np.ndarray, " E"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"], Float[np.ndarray, "B E"]]:
    """Accuracy in percent, mean cost and exit fractions."""
    num_exits, num_images = split.confidence.shape
    exits = exit_of(split.confidence, thresholds)  # [B, N]
    accuracy = 100.0 * correct_at(exits, split.correct).mean(axis=1)
    counts = np.stack([(exits == i).sum(axis=1) for i in range(num_exits)], axis=1)
    return accuracy, counts @ costs / num_images, counts / num_images
