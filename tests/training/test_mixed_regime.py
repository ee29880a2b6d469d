"""The mixed regime: the last exit first, then all exits, resumable in both parts."""

import dataclasses
import json

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
from resumed_runs import killed_at

from imta_jax.config import PhaseOneConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh, place_batch
from imta_jax.training import load_classifier, phases, train_phase_one
from imta_jax.training.combinations import check_combinations
from imta_jax.training.mixed_regime import LastExitObjective
from imta_jax.training.schedules import phase_schedule
from imta_jax.training.setup import assemble_phase
from imta_jax.training.state import named_arrays

BATCH = tiny_run.draw_batch(16, 0)


@pytest.fixture(scope="module", autouse=True)
def _one_device(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def config(source):
    return tiny_run.run_config(source, phase_one__last_exit_epochs=1)


@pytest.fixture(scope="module")
def dataset(config):
    return load_dataset(config.data)


@pytest.fixture(scope="module")
def finished(config, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train_phase_one(config, dataset, folder)
    return folder / "phase_one"


def saved(folder, epoch):
    with ocp.StandardCheckpointer() as checkpointer:
        items = ("model", "progress")
        return {i: tiny_run.to_host(checkpointer.restore(folder / str(epoch) / i)) for i in items}


def test_the_first_part_trains_the_backbone_and_the_last_head_only(phase_one):
    phase = assemble_phase(
        "phase_one",
        tiny_run.run_config("unused"),
        phase_one.classifier,
        LastExitObjective(),
        phase_one.trainable,
        phase_one.optimizer,
        **tiny_run.PIXELS,
        mesh=phase_one.mesh,
    )
    state, metrics = jax.jit(phase.step)(phase.new_state(), place_batch(BATCH, phase.mesh))
    momentum = tiny_run.to_host(named_arrays(state.opt_state))
    # Biases start at zero, so that weight decay gives them no momentum.
    moved = {name: bool(np.any(array)) for name, array in momentum.items()}
    (first,) = [name for name in moved if ".heads.linears.0.bias" in name]
    (last,) = [name for name in moved if ".heads.linears.1.bias" in name]
    assert moved[last] and not moved[first]
    assert any(moved[name] for name in moved if ".backbone.first" in name)
    assert metrics.loss.shape == (2,)


def test_a_mixed_run_differs_from_a_joint_one(config, dataset, finished, tmp_path):
    joint = dataclasses.replace(
        config, phase_one=dataclasses.replace(config.phase_one, last_exit_epochs=0)
    )
    train_phase_one(joint, dataset, tmp_path)
    mixed, plain = (load_classifier(folder)[1] for folder in (finished, tmp_path / "phase_one"))
    assert mixed["epoch"] == plain["epoch"] == 3
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(saved(finished, 3), saved(tmp_path / "phase_one", 3))


@pytest.mark.parametrize("killed_in_epoch", [0, 1])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    killed_in_epoch, config, dataset, finished, tmp_path
):
    with killed_at(killed_in_epoch, 1):
        train_phase_one(config, dataset, tmp_path)
    train_phase_one(config, dataset, tmp_path)
    chex.assert_trees_all_equal(saved(tmp_path / "phase_one", 3), saved(finished, 3))


def test_each_part_has_its_own_schedule_of_the_learning_rate(config):
    """Drops after 1/2 and 3/4 of 4 and of 8 steps."""
    first, second = phase_schedule(config.phase_one, 4), phase_schedule(config.phase_one, 12, 4)
    actual = [float(first(step)) for step in range(4)] + [float(second(s)) for s in range(4, 12)]
    factors = [1, 1, 0.1, 0.01, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(
        actual, config.phase_one.learning_rate * np.array(factors), rtol=1e-6
    )


def test_a_run_logs_the_learning_rates_of_both_parts(config, finished):
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    rates = [row["learning_rate"] for row in map(json.loads, lines) if row["split"] == "train"]
    # 3 + 6 steps: the last step of an epoch is step 2 of 3, step 2 of 6 and step 5 of 6.
    expected = config.phase_one.learning_rate * np.array([0.01, 1, 0.01])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_first_part_must_be_shorter_than_the_phase():
    with pytest.raises(ValueError, match=r"phase_one.last_exit_epochs.*total_epochs, 3; found 3"):
        PhaseOneConfig(total_epochs=3, batch_size=16, last_exit_epochs=3)


def test_a_network_with_a_gate_is_rejected():
    config = tiny_run.run_config("unused", phase_one__last_exit_epochs=1)
    hydra = dataclasses.replace(config, model=type(config.model)(preset="quickstart_hydra"))
    with pytest.raises(ValueError, match=r"last_exit_epochs.*gate_weight.*found 1"):
        check_combinations(hydra)
