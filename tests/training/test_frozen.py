"""Freezing by regular expression: arrays, statistics, and expressions that match nothing."""

import numpy as np
import pytest
import tiny_run

from imta_jax.data import load_dataset
from imta_jax.training.checks import check_training_data

pytestmark = pytest.mark.usefixtures("compilation_cache")


def changed(phase, batches=2):
    """Names of the arrays that training changes, and all names."""
    drawn = [tiny_run.draw_batch(16, seed) for seed in range(batches)]
    before, after = tiny_run.arrays_around_steps(phase, drawn)
    return {name for name in before if not np.array_equal(before[name], after[name])}, set(before)


def test_frozen_parameters_and_their_statistics_do_not_change(mesh):
    # One of the convolutions that are computed jointly, so that modes within a group differ.
    frozen = ("^backbone.first", r"normal\.0\.", "kernel$")
    phase = tiny_run.make_phase("phase_one", mesh, phase_one__freeze=frozen)
    actual, names = changed(phase)
    kept = {
        name
        for name in names
        if name.startswith("backbone.first") or ".normal.0." in name or name.endswith("kernel")
    }
    assert any(name.endswith("mean") for name in kept)
    assert actual == names - kept


def test_only_matching_statistics_are_frozen(mesh):
    phase = tiny_run.make_phase("phase_one", mesh, phase_one__freeze=("norm.(scale|bias)$",))
    actual, names = changed(phase)
    assert names - actual == {n for n in names if n.endswith(("scale", "norm.bias"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"phase_one__freeze": ("^backbone", "no_such_layer")},
            r"phase_one\.freeze: 'no_such_layer'.*backbone\.",
        ),
        (
            {"phase_two__learning_rate_multipliers": (("^backbone", 0.1),)},
            r"phase_two\.learning_rate_multipliers: '\^backbone'.*heads\.",
        ),
        (
            {
                "phase_one__freeze": ("^backbone",),
                "phase_one__learning_rate_multipliers": (("^backbone", 0.1),),
            },
            r"phase_one\.learning_rate_multipliers: '\^backbone'",
        ),
        ({"phase_two__freeze": ("",)}, r"phase_two\.freeze.*freezes all"),
    ],
)
def test_an_expression_that_matches_no_trained_parameter_raises(source, changes, message):
    config = tiny_run.run_config(source, **changes)
    with pytest.raises(ValueError, match=message):
        check_training_data(config, load_dataset(config.data))
