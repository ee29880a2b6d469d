"""Methods with fitted parameters: one half of the validation images fits, the other half selects.

| method | fitted on the first half | chosen on the second half |
|---|---|---|
| `ensemble` | geometric ensemble of the exits (`geometric_ensemble`) | thresholds of the sweep |
| `gate` | a gate per exit for each of several prices (`learned_gate`) | the price |

Both choose the costliest point within the budget. Their own multiply-adds are counted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imta_jax.evaluation.array_shapes import Float, Float64
from imta_jax.evaluation.methods.geometric_ensemble import fit_geometric_ensemble
from imta_jax.evaluation.methods.learned_gate import (
    PRICES,
    fit_gates,
    gate_inputs,
    gate_multiply_adds,
)
from imta_jax.evaluation.methods.selection import (
    Selection,
    Splits,
    costliest_within,
    select_by_thresholds,
    split_outcomes,
    sweep_thresholds,
)
from imta_jax.evaluation.predictions import Predictions
from imta_jax.evaluation.thresholds import exit_of


def select_by_fitted(
    validation: Predictions,
    test: Predictions,
    costs: Float64[np.ndarray, " E"],
    budgets: Float[np.ndarray, " B"],
    quotas: Sequence[float],
    cost_of_multiply_add: float,
) -> dict[str, Selection]:
    """Evaluates the methods with fitted parameters at each budget.

    Args:
      validation: logits and labels of validation images.
      test: logits and labels of test images.
      costs: cumulative cost per exit.
      budgets: mean costs, as fractions of the last exit's cost.
      quotas: quotas of the sweep (see `geometric_quota`).
      cost_of_multiply_add: cost of one multiply-add in the unit of the costs; 0 if that is unknown.
    """
    fitting, selecting = (
        Predictions(validation.logits[:, start::2], validation.labels[start::2]) for start in (0, 1)
    )
    settings = [{"budget": float(b)} for b in budgets]
    limits = budgets * costs[-1]
    task = _Task(fitting, selecting, test, costs, limits, settings, cost_of_multiply_add)
    return {"ensemble": _ensemble(task, quotas), "gate": _gate(task)}


class _Task(NamedTuple):
    """Splits for fitting, selection and testing, and the budgets."""

    fitting: Predictions
    selecting: Predictions
    test: Predictions
    costs: Float64[np.ndarray, " E"]
    limits: Float[np.ndarray, " B"]
    settings: Sequence[Mapping[str, float]]
    cost_of_multiply_add: float


def _ensemble(task: _Task, quotas: Sequence[float]) -> Selection:
    ensemble = fit_geometric_ensemble(*task.fitting)
    costs = task.costs + task.cost_of_multiply_add * ensemble.multiply_adds()
    no_scaling = np.ones(len(costs))
    outcomes = Splits(
        *(
            split_outcomes(Predictions(ensemble.logits(logits), labels), no_scaling)
            for logits, labels in (task.selecting, task.test)
        )
    )
    sweep = sweep_thresholds(outcomes.validation.confidence, quotas)
    cost = costs[exit_of(outcomes.validation.confidence, sweep)].mean(axis=1)
    chosen = sweep[costliest_within(cost, task.limits)]
    selection = select_by_thresholds(task.settings, chosen, outcomes)
    return selection._replace(thresholds=None, outcomes=outcomes, costs=costs)


def _gate(task: _Task) -> Selection:
    num_exits, _, num_classes = task.test.logits.shape
    inputs, to_select, to_measure = (
        gate_inputs(*split) for split in (task.fitting, task.selecting, task.test)
    )
    gates = [fit_gates(inputs, task.costs, price) for price in PRICES]
    costs = task.costs + task.cost_of_multiply_add * gate_multiply_adds(num_exits, num_classes)
    # The limits, for budgets that no price meets: all images at the first or at the last exit.
    ends = np.array([[0], [num_exits - 1]])
    validation_exits, test_exits = (
        np.concatenate(
            [
                np.stack([gate.exits(split.uncertainty) for gate in gates]),
                np.broadcast_to(ends, (2, split.losses.shape[1])),
            ]
        )
        for split in (to_select, to_measure)
    )
    chosen = costliest_within(costs[validation_exits].mean(axis=1), task.limits)
    no_scaling = np.ones(num_exits)
    outcomes = Splits(*(split_outcomes(split, no_scaling) for split in (task.selecting, task.test)))
    return Selection(
        task.settings, validation_exits[chosen], test_exits[chosen], outcomes=outcomes, costs=costs
    )
