"""Optimizer, schedule, average and early stopping of resumed runs."""

import shutil

import numpy as np
import pytest
import tiny_run
from flax import nnx
from resumed_runs import TRAIN, assert_same_phase, killed_at, rows, saved

from imta_jax.evaluation.run import _phase_record
from imta_jax.training import load_classifier, phase_is_finished, read_meta
from imta_jax.training.state import named_arrays

RECIPE = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_epochs": 1,
    "gradient_clip_norm": 1.0,
    "ema_decay": 0.9,
    "learning_rate": 0.01,
}
CHANGES = {f"{phase}__{name}": x for phase in TRAIN for name, x in RECIPE.items()}


@pytest.fixture(scope="module")
def recipe_config(source):
    return tiny_run.run_config(source, **CHANGES, checkpoint__every_steps=1)


@pytest.fixture(scope="module")
def trained(recipe_config, dataset, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("recipe")
    for train in TRAIN.values():
        train(recipe_config, dataset, folder)
    return folder


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_a_killed_phase_ends_like_an_uninterrupted_one(
    phase, recipe_config, dataset, trained, tmp_path
):
    if phase == "phase_two":
        shutil.copytree(trained / "phase_one", tmp_path / "phase_one")
    with killed_at(1, 2):
        TRAIN[phase](recipe_config, dataset, tmp_path)
    TRAIN[phase](recipe_config, dataset, tmp_path)
    epochs = getattr(recipe_config, phase).total_epochs
    assert_same_phase(tmp_path / phase, trained / phase, epochs)


def test_phase_two_starts_from_the_average_of_phase_one(trained):
    first, second = saved(trained / "phase_one", 3), saved(trained / "phase_two", 2)
    name = next(name for name in first["model"] if name.startswith("backbone"))
    np.testing.assert_array_equal(second["model"][name], first["model"][name])
    values = first["progress"][f"not_averaged.trainable.{name}.value"]
    assert not np.array_equal(values, first["model"][name])


def test_the_loaded_classifier_has_the_average(trained):
    classifier, meta = load_classifier(trained / "phase_one")
    actual = named_arrays(nnx.state(classifier))
    stored = saved(trained / "phase_one", 3)["model"]
    for name, x in stored.items():
        np.testing.assert_array_equal(actual[name], x)
    assert meta["recipe"]["fields"]["ema_decay"] == 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase_one__optimizer": "lamb"}, r"phase_one\.optimizer.*'adamw'.*'lamb'"),
        ({"phase_one__schedule": "linear"}, r"phase_one\.schedule.*'cosine'.*'linear'"),
        ({"phase_one__ema_decay": 0.0}, r"phase_one\.ema_decay.*0\.9.*None"),
        (
            {"phase_one__optimizer_options": {"b1": 0.8}},
            r"phase_one\.optimizer_options.*None.*'b1': 0\.8",
        ),
    ],
)
def test_resuming_with_another_recipe_is_rejected(change, message, source, dataset, trained):
    config = tiny_run.run_config(source, **CHANGES | change)
    with pytest.raises(ValueError, match=message):
        TRAIN["phase_one"](config, dataset, trained)


@pytest.fixture(scope="module")
def stopped(source, dataset, tmp_path_factory):
    """A run that stops early: frozen parameters and a tiny learning rate change no prediction."""
    changes = {"learning_rate": 1e-12, "early_stopping_epochs": 2, "total_epochs": 6}
    changes = {f"phase_one__{name}": x for name, x in changes.items()}
    config = tiny_run.run_config(
        source, **changes, phase_one__freeze=("^backbone",), phase_two__total_epochs=0
    )
    folder = tmp_path_factory.mktemp("stopped")
    TRAIN["phase_one"](config, dataset, folder)
    return config, folder


def test_a_phase_stops_after_epochs_without_a_better_accuracy(stopped):
    config, folder = stopped
    assert [row["epoch"] for row in rows(folder / "phase_one")][-1] == 3
    last = rows(folder / "phase_one")[-1]
    assert last["stopped_early"] and last["best_epoch"] == 1
    assert phase_is_finished(config, folder, "phase_one")
    record = read_meta(folder / "phase_one")["early_stopping"]
    assert record["stopped"] and record["best_epoch"] == 1


def test_a_stopped_phase_is_not_trained_again(stopped, dataset):
    config, folder = stopped
    before = rows(folder / "phase_one")
    TRAIN["phase_one"](config, dataset, folder)
    assert rows(folder / "phase_one") == before


def test_a_resumed_phase_stops_at_the_same_epoch(stopped, dataset, tmp_path):
    config, folder = stopped
    with killed_at(2, 1):
        TRAIN["phase_one"](config, dataset, tmp_path)
    assert not phase_is_finished(config, tmp_path, "phase_one")
    TRAIN["phase_one"](config, dataset, tmp_path)
    assert_same_phase(tmp_path / "phase_one", folder / "phase_one", 3)


def test_results_record_that_a_phase_stopped_early(stopped):
    config, folder = stopped
    record = _phase_record(config, folder, "phase_one")
    assert record["stopped_early"] and record["epochs"] == 3
