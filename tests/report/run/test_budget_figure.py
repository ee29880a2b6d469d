"""The axis of the budget curve's figure: which points it shows."""

import dataclasses

import numpy as np
import pytest
from run_samples import write_run

from imta_jax import report
from imta_jax.report.run.budget import LEAST_RANGE_POINTS, accuracy_range


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return report.load_run(write_run(tmp_path_factory.mktemp("run") / "run"))


def with_top1(record, first_exit, others):
    """The record with the top-1 of the first exit, below 30% of the cost, and of all other points.

    The budget curve has the accuracy of the other points.
    """
    exits = record.exits.assign(top1=[first_exit, *others])
    macs = np.array([first_exit_cost(record), *exits["macs"][1:]], dtype=float)
    curve = record.budget_curve.assign(top1=others[-1], mean_macs=record.full_macs)
    return dataclasses.replace(record, exits=exits.assign(macs=macs), budget_curve=curve)


def first_exit_cost(record):
    return 0.1 * record.full_macs


@pytest.mark.parametrize(
    ("first_exit", "shown"), [(84.5, True), (81.0, True), (60.0, False), (20.0, False)]
)
def test_a_cheap_exit_is_on_the_axis_only_where_the_curve_stays_readable(record, first_exit, shown):
    low, high = accuracy_range(with_top1(record, first_exit, [87.6, 87.7, 88.5]))
    assert (low <= first_exit) == shown
    assert low < 87.6 and high > 88.5


def test_equal_exits_have_an_axis_of_at_least_the_smallest_range(record):
    low, high = accuracy_range(with_top1(record, 88.4, [88.5, 88.5, 88.5]))
    assert high - low >= LEAST_RANGE_POINTS
