"""The monotone frontier of a budget curve: more compute never lowers validation accuracy.

A costlier point of a sweep can have a lower validation accuracy than a cheaper one. The frontier
replaces it by the best cheaper point, at that point's cost, like the published evaluation of
BoostNet. Test images are not used.
"""

import dataclasses

import numpy as np

from imta_jax.evaluation.array_shapes import Float, Int
from imta_jax.evaluation.budget import BudgetCurve


def monotone_frontier(curve: BudgetCurve) -> BudgetCurve:
    """Replaces each point by the most accurate point on validation images at no higher cost.

    Args:
      curve: curve of `budget_curve`, B points in any order.

    Returns:
      B points in the order of rising validation cost of the points they replace. A point that
      dominates others appears several times. Validation accuracy and validation cost never fall;
      test accuracy can.
    """
    best = frontier_indices(curve.validation_cost, curve.validation_accuracy)
    fields = (field.name for field in dataclasses.fields(curve))
    return BudgetCurve(**{name: getattr(curve, name)[best] for name in fields})


def frontier_indices(
    cost: Float[np.ndarray, " B"], accuracy: Float[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """By rising cost, the index of the most accurate point so far.

    Among equally accurate points the cheapest is taken.
    """
    order = np.lexsort((-accuracy, cost))
    by_cost = accuracy[order]
    improves = np.r_[True, by_cost[1:] > np.maximum.accumulate(by_cost)[:-1]]
    return order[np.maximum.accumulate(np.where(improves, np.arange(len(order)), 0))]
