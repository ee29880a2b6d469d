"""Operating points of an export for a budget."""

import numpy as np
import pytest

from imta_jax.evaluation import best_within_ms
from imta_jax.inference import OperatingPoint, load_exported

CHEAP = OperatingPoint(0.4, (0.3, 0.3, -1e8), (0.9, 0.1, 0.0), 70.0, 69.0)
ACCURATE = OperatingPoint(0.8, (0.99, 0.99, -1e8), (0.1, 0.1, 0.8), 80.0, 79.0)


def test_budget_selects_the_most_accurate_affordable_point(exported_folder):
    exported = load_exported(exported_folder)
    for budget, point in ((0.4, CHEAP), (0.79, CHEAP), (0.8, ACCURATE), (1.0, ACCURATE)):
        assert exported.point_for(budget) == point
        thresholds = exported.adaptive(budget).thresholds
        np.testing.assert_array_equal(thresholds, np.asarray(point.thresholds, np.float32))


def test_budget_below_all_points_is_rejected(exported_folder):
    with pytest.raises(ValueError, match=r"budget=0\.2 .*0\.400, 0\.800"):
        load_exported(exported_folder).adaptive(0.2)


def test_budget_in_time_selects_the_most_accurate_affordable_point():
    points = [
        OperatingPoint(0.3, (0.1, 0.0), (0.9, 0.1), 80.0, 80.0),
        OperatingPoint(0.6, (0.5, 0.0), (0.5, 0.5), 85.0, 85.0),
    ]
    assert best_within_ms(points, [1.0, 3.0], 2.0) is points[1]
    assert best_within_ms(points, [1.0, 3.0], 1.9) is points[0]
    with pytest.raises(ValueError, match=r"budget_ms=1 .*1\.2"):
        best_within_ms(points, [1.0, 3.0], 1.0)
