"""Fields that have no effect with another choice are reported."""

import tiny_run

from imta_jax.training.unused_fields import unused_fields


def notes(**changes):
    return unused_fields(tiny_run.run_config("unused.npz", phase_two__alpha=0.3, **changes))


def test_fields_of_another_optimizer_schedule_or_loss_are_reported():
    changes = {
        "phase_one__optimizer": "adamw",
        "phase_one__momentum": 0.5,
        "phase_one__schedule": "cosine",
        "phase_one__drop_factor": 0.5,
        "phase_one__detach_fraction": 0.25,
        "phase_two__objective": "cross_entropy",
        "phase_two__teacher": "phase_one_last_exit",
        "phase_two__temperature_squared": False,
    }
    assert notes(**changes) == [
        "config.phase_one: no effect with optimizer='adamw': momentum=0.5",
        "config.phase_one: no effect with schedule='cosine': drop_factor=0.5",
        "config.phase_one: no effect with detach='off': detach_fraction=0.25",
        "config.phase_two: no effect with objective='cross_entropy': teacher='phase_one_last_exit'",
    ]
    assert notes(**changes, phase_two__total_epochs=0) == notes(**changes)[:3]


def test_fields_with_an_effect_or_their_defaults_are_not_reported():
    assert notes() == []
    changes = {"momentum": 0.5, "drop_factor": 0.5, "detach": "all", "detach_fraction": 0.25}
    assert notes(**{f"phase_one__{name}": value for name, value in changes.items()}) == []
