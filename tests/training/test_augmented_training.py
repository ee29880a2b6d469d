"""Training with label smoothing, mixed labels and augmented batches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from resumed_runs import assert_same_phase, killed_at

from imta_jax.config import PhaseOneConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh, place_batch
from imta_jax.runtime.registry import OBJECTIVES
from imta_jax.studies.variants import key_fields
from imta_jax.training import phases, train_phase_one
from imta_jax.training.combinations import check_combinations
from imta_jax.training.loss_objective import check_loss
from imta_jax.training.objectives import exit_metrics
from imta_jax.training.setup import phase_one_objective, phase_two_objective
from imta_jax.training.step import jit_batch_step

RECIPE = {
    "label_smoothing": 0.1,
    "randaugment_operations": 1,
    "random_erasing": 0.5,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
}


def of_phase(name, fields):
    return {f"{name}__{field}": value for field, value in fields.items()}


@pytest.fixture(scope="module", autouse=True)
def _one_device(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


def test_a_killed_run_with_augmentation_ends_like_an_uninterrupted_one(source, tmp_path):
    changes = {"phase_one__total_epochs": 2} | of_phase("phase_one", RECIPE)
    config = tiny_run.run_config(source, **changes)
    dataset = load_dataset(config.data)
    train_phase_one(config, dataset, tmp_path / "expected")
    with killed_at(1, 1):
        train_phase_one(config, dataset, tmp_path / "killed")
    train_phase_one(config, dataset, tmp_path / "killed")
    assert_same_phase(tmp_path / "killed/phase_one", tmp_path / "expected/phase_one", 2)
    rows = (tmp_path / "killed/phase_one/metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(row)["loss"]) for row in rows)


def test_phase_two_trains_on_mixed_labels():
    changes = of_phase("phase_two", {"mixup_alpha": 0.4, "label_smoothing": 0.1})
    phase = tiny_run.make_phase("phase_two", data_mesh(jax.devices()[:1]), **changes)
    state = phase.new_state()
    step = jit_batch_step(phase.step, phase.mesh, state)
    state, metrics = step(state, place_batch(tiny_run.draw_batch(16, 0), phase.mesh))
    assert int(state.step) == 1
    assert np.isfinite(metrics.loss).all()


def test_top1_counts_the_class_with_the_largest_share():
    logits = jnp.array([[[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]])
    labels = jnp.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3]])
    assert exit_metrics(logits, labels).top1.tolist() == [50.0]


def test_metrics_are_not_smoothed():
    logits, labels = jnp.ones((2, 4, 3)).at[:, :, 0].set(2.0), jnp.zeros(4, jnp.int32)
    objective = phase_one_objective(
        tiny_run.run_config("unused.npz", **of_phase("phase_one", RECIPE))
    )
    assert objective.label_smoothing == 0.1
    expected = np.log(np.e**2 + 2 * np.e) - 2
    np.testing.assert_allclose(exit_metrics(logits, labels).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("field", ["label_smoothing", "mixup_alpha", "cutmix_alpha"])
def test_learned_sample_weights_need_classes_as_labels(field):
    changes = of_phase("phase_one", {field: 0.2, "sample_weights": "learned"})
    with pytest.raises(ValueError, match=rf"phase_one\.{field}.*\"learned\"; found 0.2"):
        check_combinations(tiny_run.run_config("unused.npz", **changes))


@pytest.mark.parametrize("field", ["mixup_alpha", "cutmix_alpha"])
def test_the_loss_of_a_gate_needs_classes_as_labels(field):
    config = tiny_run.run_config("unused.npz", **of_phase("phase_one", {field: 0.2}))
    model = type(config.model)(preset="quickstart_hydra")
    with pytest.raises(ValueError, match=rf"phase_one\.{field}.*gate.*found 0.2"):
        check_combinations(dataclasses.replace(config, model=model))


def test_mixing_needs_two_images_per_batch():
    changes = of_phase("phase_two", {"mixup_alpha": 0.2, "batch_size": 1})
    with pytest.raises(ValueError, match=r"phase_two\.batch_size.*at least 2.*found 1"):
        check_combinations(tiny_run.run_config("unused.npz", **changes))


def test_own_losses_must_accept_what_the_recipe_needs(monkeypatch):
    def classes_only(logits, labels):
        return jnp.take_along_axis(logits, labels[None, :, None], axis=-1).mean(axis=(1, 2))

    def smooths(logits, labels, *, label_smoothing):
        return (logits.mean(axis=-1) * label_smoothing).mean(axis=-1)

    monkeypatch.setitem(OBJECTIVES._components, "classes_only", classes_only)
    monkeypatch.setitem(OBJECTIVES._components, "smooths", smooths)
    smoothing = of_phase("phase_two", {"label_smoothing": 0.1, "objective": "classes_only"})
    with pytest.raises(ValueError, match=r"phase_two\.label_smoothing is 0\.1.*classes_only"):
        phase_two_objective(tiny_run.run_config("unused.npz", **smoothing))
    smoothing["phase_two__objective"] = "smooths"
    objective = phase_two_objective(tiny_run.run_config("unused.npz", **smoothing))
    assert objective.arguments["label_smoothing"] == 0.1

    changes = of_phase("phase_one", {"mixup_alpha": 0.1, "objective": "classes_only"})
    objective = phase_one_objective(tiny_run.run_config("unused.npz", **changes))
    check_loss(objective, 2, 3)
    with pytest.raises(ValueError, match=r"classes_only.*labels \(2, 3\).*mixup or cutmix"):
        check_loss(objective, 2, 3, mixed_labels=True)


def test_defaults_do_not_change_the_key_of_a_study():
    settings = PhaseOneConfig(total_epochs=1, batch_size=2)
    assert not key_fields(settings).keys() & (RECIPE.keys() | {"randaugment_magnitude"})
