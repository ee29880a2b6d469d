"""The training step with learned sample weights, against nested differentiation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny_run
from flax import nnx
from resumed_runs import killed_at

from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh, place_batch
from imta_jax.nn.pixels import normalize
from imta_jax.techniques.sample_weights import (
    leaving_counts,
    meta_loss,
    new_weight_network,
    sample_weights,
)
from imta_jax.training import phases, train_phase_one
from imta_jax.training.checkpoints import _arrays
from imta_jax.training.checks import check_training_config
from imta_jax.training.combinations import check_combinations
from imta_jax.training.state import named_arrays
from imta_jax.training.step import jit_batch_step

LEARNED = {"phase_one__sample_weights": "learned"}
BATCH = tiny_run.draw_batch(16, 0)
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def one_device():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def phase(one_device):
    return tiny_run.make_phase("phase_one", one_device, **LEARNED)


def after_a_step(phase, batch=BATCH):
    state = phase.new_state()
    step = jit_batch_step(phase.step, phase.mesh, state)
    return step(state, place_batch(batch, phase.mesh))


def nats(logits, labels):
    every = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, every)


def test_a_step_equals_nested_differentiation(phase):
    """Differentiates the virtual step, with its inner gradient, by jax.grad alone."""
    graphdef, params, rest = nnx.split(phase.classifier, nnx.Param, ...)
    images = normalize(jnp.asarray(BATCH.images), **tiny_run.PIXELS)
    halves = [(images[i::2], jnp.asarray(BATCH.labels)[i::2]) for i in (0, 1)]
    tx, adam = phase.optimizer, optax.adam(1e-4)
    opt_state, network = tx.init(params), new_weight_network(2, 0)
    adam_state = adam.init(network)

    def logits_of(params, images):
        classifier = nnx.merge(graphdef, params, rest, copy=True)
        return phase.objective.outputs(classifier, images)[0]

    @jax.jit
    def gradient_of(network, images, labels):
        def weighted(params):
            losses = nats(logits_of(params, images), labels)
            return (sample_weights(network, losses) * losses).mean(axis=1).sum()

        return jax.grad(weighted)(params)

    @jax.jit
    def to_network(network, half, meta):
        def loss(network):
            updates, _ = tx.update(gradient_of(network, *half), opt_state, params)
            logits = logits_of(optax.apply_updates(params, updates), meta[0])
            return meta_loss(logits, meta[1], leaving_counts(2, 8))

        return jax.grad(loss)(network)

    gradients = []
    for half, meta in (halves, halves[::-1]):
        updates, adam_state = adam.update(to_network(network, half, meta), adam_state)
        network = optax.apply_updates(network, updates)
        gradients.append(gradient_of(network, *half))
    state, metrics = after_a_step(phase)
    moments = state.extra["optimizer"][0].mu
    for actual, expected in zip(moments, adam_state[0].mu, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    updates, _ = tx.update(mean, opt_state, params)
    chex.assert_trees_all_close(
        tiny_run.to_host(named_arrays(state.trainable)),
        tiny_run.to_host(named_arrays(optax.apply_updates(params, updates))),
        rtol=1e-3,
        atol=1e-5,
    )
    assert metrics.loss.shape == (2,) and int(state.step) == 1


@pytest.mark.parametrize("parameter_shards", [1, 2])
def test_several_devices_take_the_step_of_one(phase, parameter_shards):
    mesh = data_mesh(jax.devices()[:2], parameter_shards=parameter_shards)
    several = tiny_run.make_phase("phase_one", mesh, **LEARNED)
    (one, metrics), (two, other_metrics) = after_a_step(phase), after_a_step(several)
    chex.assert_trees_all_close(
        tiny_run.to_host(named_arrays(one.trainable)),
        tiny_run.to_host(named_arrays(two.trainable)),
        rtol=1e-3,
        atol=1e-5,
    )
    chex.assert_trees_all_close(metrics, other_metrics, rtol=1e-4)


def test_checkpoints_have_the_weight_network_only_if_weights_are_learned(phase, one_device):
    plain = tiny_run.make_phase("phase_one", one_device)
    names, more = (_arrays(p.new_state())["progress"].keys() for p in (plain, phase))
    assert not any("extra" in name for name in names)
    assert {name.split(".")[0] for name in more - names} == {"extra"}


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, monkeypatch, one_device):
    monkeypatch.setattr(phases, "mesh_of", lambda config: one_device)
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    config = tiny_run.run_config(source, phase_one__total_epochs=2, **LEARNED)
    dataset = load_dataset(config.data)

    def saved(folder):
        with ocp.StandardCheckpointer() as checkpointer:
            items = ("model", "progress")
            path = folder / "phase_one" / "2"
            return {i: tiny_run.to_host(checkpointer.restore(path / i)) for i in items}

    train_phase_one(config, dataset, tmp_path / "whole")
    with killed_at(1, 1):
        train_phase_one(config, dataset, tmp_path / "killed")
    train_phase_one(config, dataset, tmp_path / "killed")
    whole = saved(tmp_path / "whole")
    chex.assert_trees_all_equal(saved(tmp_path / "killed"), whole)
    kernel = next(v for k, v in whole["progress"].items() if k.endswith("network.output_kernel"))
    assert not np.array_equal(kernel, new_weight_network(2, config.seed).output_kernel)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"accumulate_parts": 2}, "accumulate_parts"),
        ({"exit_losses": "mean"}, "exit_losses"),
        ({"last_exit_epochs": 1}, "last_exit_epochs"),
    ],
)
def test_combinations_that_are_not_defined_are_rejected(changes, field):
    changes = {f"phase_one__{name}": value for name, value in changes.items()}
    config = tiny_run.run_config("unused", **LEARNED, **changes)
    with pytest.raises(ValueError, match=rf"phase_one.{field}.*sample_weights=\"learned\""):
        check_combinations(config)


def test_networks_with_one_exit_are_rejected():
    config = tiny_run.run_config("unused", **LEARNED)
    hydra = dataclasses.replace(config, model=type(config.model)(preset="quickstart_hydra"))
    with pytest.raises(ValueError, match=r"sample_weights.*gate_weight.*found 'learned'"):
        check_combinations(hydra)


def test_a_batch_has_two_halves_on_every_device():
    config = tiny_run.run_config("unused", **LEARNED, phase_one__batch_size=24)
    with pytest.raises(ValueError, match=r"phase_one.batch_size.*24"):
        check_training_config(config)  # The tests have 8 devices.
