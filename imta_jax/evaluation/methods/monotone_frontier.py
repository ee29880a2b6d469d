"""The monotone envelope of a budget curve: more compute never means less validation accuracy.

The points of a sweep need not rise: where a dearer point is worse on validation images, the best
cheaper one is deployed instead, at its own lower cost (as BoostNet's published evaluation flattens
its curves). Test images have no say. `adaptive.operating_point` reads off one budget the same way.
"""

import dataclasses

import numpy as np

from imta_jax.evaluation.budget import BudgetCurve


def monotone_envelope(curve: BudgetCurve) -> BudgetCurve:
    """Replaces each point by the best one on validation images that costs no more there.

    Args:
      curve: from `budget_curve`, B points in any order.

    Returns:
      B points by rising validation cost of the points they replace; a point that dominates others
      stands in their place, so it is there several times. Validation accuracy and validation cost
      never fall along it; test accuracy may.
    """
    best = envelope_points(curve.validation_cost, curve.validation_accuracy)
    fields = (field.name for field in dataclasses.fields(curve))
    return BudgetCurve(**{name: getattr(curve, name)[best] for name in fields})


def envelope_points(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Indices [B]: in order of rising cost [B], the most accurate [B] of the points so far.

    Among equally accurate points the cheapest counts.
    """
    order = np.lexsort((-accuracy, cost))
    rising = accuracy[order]
    record = np.r_[True, rising[1:] > np.maximum.accumulate(rising)[:-1]]
    return order[np.maximum.accumulate(np.where(record, np.arange(len(order)), 0))]
