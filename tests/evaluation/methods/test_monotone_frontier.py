"""The monotone frontier of a budget curve."""

import dataclasses

import numpy as np
from sample_logits import COSTS, random_outcomes

from imta_jax.evaluation.budget import curve_of_outcomes
from imta_jax.evaluation.methods.monotone_frontier import monotone_frontier


def test_frontier_never_falls_and_ignores_test_images():
    curve = curve_of_outcomes(random_outcomes(0, 300), random_outcomes(1, 300), COSTS)
    assert (np.diff(curve.validation_accuracy) < 0).any()
    frontier = monotone_frontier(curve)
    assert (np.diff(frontier.validation_accuracy) >= 0).all()
    assert (np.diff(frontier.validation_cost) >= 0).all()
    for cost, best in zip(
        np.sort(curve.validation_cost), frontier.validation_accuracy, strict=True
    ):
        assert best == curve.validation_accuracy[curve.validation_cost <= cost].max()
    other = monotone_frontier(dataclasses.replace(curve, accuracy=-curve.accuracy))
    np.testing.assert_array_equal(other.accuracy, -frontier.accuracy)
