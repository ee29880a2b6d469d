"""Comparison of all threshold methods on the same logits, with confidence intervals.

The methods are listed in `selection`. Test images are only measured. Accuracies have Wilson
intervals. The gain of a point is its test accuracy minus the sweep's *at the same validation cost*,
image by image, with a bootstrap interval. Between two points of the sweep this is a random mixture
of the two, so that no method gains by only using more of its budget. The sweep's limits, all images
at the first and all at the last exit, are among its points. The multiply-adds of methods that
compute more than the network (`fitted`) are added to costs that are multiply-adds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Float64
from imta_jax.evaluation.budget import (
    DEFAULT_QUOTAS,
    Outcomes,
    checked_costs,
    checked_outcomes,
    correct_at,
)
from imta_jax.evaluation.methods.intervals import bootstrap_interval, wilson_interval
from imta_jax.evaluation.methods.selection import (
    Selection,
    SplitOutcomes,
    Splits,
    select_by_budget,
    select_by_guarantee,
    select_by_patience,
    select_by_temperature,
    select_by_thresholds,
    split_outcomes,
    sweep_thresholds,
)
from imta_jax.evaluation.methods.temperature import temperatures
from imta_jax.evaluation.predictions import Predictions, checked_predictions

DEFAULT_BUDGETS = tuple(b / 20 for b in range(2, 20))
DEFAULT_TOLERANCES = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class MethodCurve:
    """P points of one method. Costs have the unit of the given costs; accuracies are in percent.

    Attributes:
      method: its name, see `selection`.
      settings: P mappings: `budget` (fraction of the last exit's cost), `patience` (exits), or
        `tolerance_points` with `confidence_level`.
      thresholds: None if the method has none. Thresholds of `temperature` apply to scaled
        confidences.
      temperatures: divisors of the logits per exit, or None.
      validation_accuracy: top-1 accuracy on validation images.
      validation_cost: mean per validation image.
      accuracy: top-1 accuracy on test images.
      accuracy_interval: lower and upper end.
      mean_cost: mean per test image.
      exit_fractions: fraction of the test images per exit; rows sum to 1.
      gain: test accuracy minus the sweep's at the same validation cost, in percentage points.
      gain_interval: lower and upper end.
    """

    method: str
    settings: tuple[Mapping[str, float], ...]
    thresholds: Float32[np.ndarray, "P E"] | None
    temperatures: Float[np.ndarray, " E"] | None
    validation_accuracy: Float64[np.ndarray, " P"]
    validation_cost: Float64[np.ndarray, " P"]
    accuracy: Float64[np.ndarray, " P"]
    accuracy_interval: Float64[np.ndarray, "P 2"]
    mean_cost: Float64[np.ndarray, " P"]
    exit_fractions: Float64[np.ndarray, "P E"]
    gain: Float64[np.ndarray, " P"]
    gain_interval: Float64[np.ndarray, "P 2"]


def compare_methods(
    validation: Predictions | tuple[ArrayLike, ArrayLike],
    test: Predictions | tuple[ArrayLike, ArrayLike],
    costs: object,
    budgets: ArrayLike = DEFAULT_BUDGETS,
    *,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    confidence_level: float = 0.95,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MethodCurve]:
    """Selects exits by every method on validation images and measures them on test images.

    Args:
      validation: logits [E, N, K] and labels [N] of validation images, preprocessed like test
        images.
      test: logits and labels of test images.
      costs: [E] cumulative cost of leaving at each exit, or an object with these as `.macs`. The
        multiply-adds of the methods themselves are counted for such an object only, because other
        costs may have any unit.
      budgets: mean costs, as fractions of the last exit's cost.
      tolerances: tolerances of the guarantees, in percentage points of accuracy.
      confidence_level: confidence level of the guarantees and of the intervals.
      quotas: quotas of the sweep (see `geometric_quota`).
      resamples: number of bootstrap resamples.
      seed: seed of the bootstrap.

    Returns:
      The methods' curves by name.

    Raises:
      ValueError: invalid predictions or costs, splits of different networks, or a budget below the
        first exit's cost.
    """
    # Imported late: it imports scipy.optimize, which takes 0.4 s.
    from imta_jax.evaluation.methods.fitted import select_by_fitted

    validation = checked_predictions(validation, "validation predictions")
    test = checked_predictions(test, "test predictions")
    _check_same_network(validation, test)
    cost_of_multiply_add = 1.0 if hasattr(costs, "macs") else 0.0
    costs = checked_costs(costs, len(validation.logits)).astype(np.float64)
    fractions = checked_budgets(budgets, costs)
    temperature = temperatures(*validation)
    splits = Splits(split_outcomes(validation, temperature), split_outcomes(test, temperature))
    selections = select_by_budget(splits, costs, fractions, quotas)
    selections["temperature"] = select_by_temperature(splits, costs, fractions, quotas, temperature)
    selections |= select_by_fitted(validation, test, costs, fractions, quotas, cost_of_multiply_add)
    selections["patience"] = select_by_patience(splits)
    selections |= select_by_guarantee(splits, tolerances, confidence_level)
    intervals = _Intervals(confidence_level, resamples, seed)
    return _curves(selections, splits, costs, quotas, intervals)


def compare_outcomes(
    validation: Outcomes | tuple[ArrayLike, ArrayLike],
    test: Outcomes | tuple[ArrayLike, ArrayLike],
    costs: object,
    budgets: ArrayLike = DEFAULT_BUDGETS,
    *,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    confidence_level: float = 0.95,
    quotas: Sequence[float] = DEFAULT_QUOTAS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MethodCurve]:
    """Like `compare_methods`, for scores of any exit rule instead of logits.

    Methods that need logits are left out. Risk control needs thresholds that do not depend on the
    validation images; it is left out unless all validation scores are in 0..1.

    Args:
      validation: scores [E, N], high where an image should leave, and whether each exit is correct
        [E, N].
      test: the same of test images.
      costs: see `compare_methods`; also the other arguments.
      budgets: see `compare_methods`.
      tolerances: see `compare_methods`.
      confidence_level: see `compare_methods`.
      quotas: see `compare_methods`.
      resamples: see `compare_methods`.
      seed: see `compare_methods`.

    Returns:
      The methods' curves by name.

    Raises:
      ValueError: scores that are not finite, shapes that disagree, invalid costs, or a budget below
        the first exit's cost.
    """
    validation, test = (checked_outcomes(*split) for split in (validation, test))
    if len(validation.confidence) != len(test.confidence):
        raise InputError(
            f"validation scores have {len(validation.confidence)} exits, test scores "
            f"{len(test.confidence)}; both must be of the same network"
        )
    costs = checked_costs(costs, len(validation.confidence)).astype(np.float64)
    splits = Splits(SplitOutcomes(*validation), SplitOutcomes(*test))
    selections = select_by_budget(splits, costs, checked_budgets(budgets, costs), quotas)
    if validation.confidence.min() >= 0 and validation.confidence.max() <= 1:
        selections |= select_by_guarantee(splits, tolerances, confidence_level)
    intervals = _Intervals(confidence_level, resamples, seed)
    return _curves(selections, splits, costs, quotas, intervals)


class _Intervals(NamedTuple):
    """Level of all intervals, and the draws of the bootstrap."""

    level: float
    resamples: int
    seed: int


def _curves(
    selections: Mapping[str, Selection],
    splits: Splits,
    costs: Float64[np.ndarray, " E"],
    quotas: Sequence[float],
    intervals: _Intervals,
) -> dict[str, MethodCurve]:
    """Measures the selections of the methods."""
    sweep = sweep_thresholds(splits.validation.confidence, quotas)
    gains = _gains(selections, select_by_thresholds((), sweep, splits), splits, costs)
    ends = _gain_intervals(gains, intervals)
    return {
        name: _curve(name, selection, splits, costs, gains[name], ends[name], intervals.level)
        for name, selection in selections.items()
    }


def _check_same_network(validation: Predictions, test: Predictions) -> None:
    if validation.logits.shape[::2] != test.logits.shape[::2]:
        raise InputError(
            f"validation logits have shape {validation.logits.shape}, test logits "
            f"{test.logits.shape}; both must have the exits and classes of the same network"
        )


def checked_budgets(
    budgets: ArrayLike, costs: Float64[np.ndarray, " E"]
) -> Float64[np.ndarray, " B"]:
    """Checks budgets and converts them to float64.

    Args:
      budgets: mean costs, as fractions of the last exit's cost.
      costs: cumulative cost per exit.

    Raises:
      ValueError: no budgets, or one that is below the first exit's cost or above 1.
    """
    fractions, least = np.asarray(budgets, np.float64), costs[0] / costs[-1]
    valid = (fractions >= least * (1 - 1e-12)) & (fractions <= 1)
    if fractions.ndim != 1 or fractions.size == 0 or not valid.all():
        raise InputError(
            f"budgets={fractions.tolist()}; expected fractions of the last exit's cost, from "
            f"{np.ceil(1e4 * least) / 1e4:.4f} (all images leave at the first exit) to 1"
        )
    return fractions


def _gains(
    selections: Mapping[str, Selection],
    sweep: Selection,
    splits: Splits,
    costs: Float64[np.ndarray, " E"],
) -> dict[str, Float32[np.ndarray, "_ N"]]:
    """Correctness minus the sweep's at the same validation cost, per test image."""
    sweep_cost = costs[sweep.validation_exits].mean(axis=1)
    sweep_correct = correct_at(sweep.test_exits, splits.test.correct)

    def gain(selection: Selection) -> Float32[np.ndarray, "_ N"]:
        outcomes, own_costs = _own(selection, splits, costs)
        cost = own_costs[selection.validation_exits].mean(axis=1)
        correct = correct_at(selection.test_exits, outcomes.test.correct)
        return correct - correct_at_cost(sweep_cost, sweep_correct, cost)

    return {name: gain(selection) for name, selection in selections.items()}


def _own(
    selection: Selection, splits: Splits, costs: Float64[np.ndarray, " E"]
) -> tuple[Splits, Float64[np.ndarray, " E"]]:
    """Outcomes and costs of a method, which are those of the network unless it has its own."""
    return (
        splits if selection.outcomes is None else selection.outcomes,
        costs if selection.costs is None else selection.costs,
    )


def correct_at_cost(
    sweep_cost: Float64[np.ndarray, " S"],
    sweep_correct: Bool[np.ndarray, "S N"],
    cost: Float64[np.ndarray, " P"],
) -> Float32[np.ndarray, "P N"]:
    """Probability that a sweep is correct on each image at costs between its points.

    Args:
      sweep_cost: costs of S points, in any order.
      sweep_correct: whether the sweep is correct, per point and image.
      cost: costs to interpolate at; costs beyond the sweep's have its last point.
    """
    order = np.argsort(sweep_cost, kind="stable")
    rising, correct = sweep_cost[order], sweep_correct[order].astype(np.float32)
    upper = np.clip(np.searchsorted(rising, cost), 1, len(rising) - 1)
    gap = rising[upper] - rising[upper - 1]
    weight = np.where(gap > 0, (cost - rising[upper - 1]) / np.where(gap > 0, gap, 1.0), 1.0)
    weight = np.clip(weight, 0.0, 1.0).astype(np.float32)[:, None]
    return correct[upper] * weight + correct[upper - 1] * (1 - weight)


def _gain_intervals(
    gains: Mapping[str, Float32[np.ndarray, "_ N"]], intervals: _Intervals
) -> dict[str, Float64[np.ndarray, "_ 2"]]:
    """Bootstrap intervals in percentage points, with the same resamples for all methods."""
    ends = 100.0 * bootstrap_interval(np.concatenate(list(gains.values())), **intervals._asdict())
    boundaries = np.cumsum([len(rows) for rows in gains.values()])[:-1]
    return dict(zip(gains, np.split(ends, boundaries), strict=True))


def _curve(
    name: str,
    selection: Selection,
    splits: Splits,
    costs: Float64[np.ndarray, " E"],
    gain: Float32[np.ndarray, "P N"],
    gain_interval: Float64[np.ndarray, "P 2"],
    level: float,
) -> MethodCurve:
    splits, costs = _own(selection, splits, costs)
    accuracy = correct_at(selection.test_exits, splits.test.correct).mean(axis=1)
    number = selection.test_exits.shape[1]
    fractions = [(selection.test_exits == e).mean(axis=1) for e in range(len(costs))]
    return MethodCurve(
        method=name,
        settings=tuple(selection.settings),
        thresholds=selection.thresholds,
        temperatures=selection.temperatures,
        validation_accuracy=100.0
        * correct_at(selection.validation_exits, splits.validation.correct).mean(axis=1),
        validation_cost=costs[selection.validation_exits].mean(axis=1),
        accuracy=100.0 * accuracy,
        accuracy_interval=100.0 * wilson_interval(accuracy, number, level),
        mean_cost=costs[selection.test_exits].mean(axis=1),
        exit_fractions=np.stack(fractions, axis=1),
        gain=100.0 * gain.mean(axis=1, dtype=np.float64),
        gain_interval=gain_interval,
    )
