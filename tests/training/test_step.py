"""The training step and the evaluation step: traces, options and non-finite losses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from imta_jax.cli.doctor import activation_bytes
from imta_jax.config import CheckpointConfig, LogConfig
from imta_jax.distributed import place_batch
from imta_jax.training import NonFiniteLossError
from imta_jax.training.callbacks import default_callbacks
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.feed import host_feed
from imta_jax.training.loop import TrainingLoop
from imta_jax.training.objectives import ALL_PARAMETERS, ExitMetrics
from imta_jax.training.packing import packed_like, unpacked
from imta_jax.training.state import create_state, named_arrays
from imta_jax.training.step import jit_batch_step, jit_eval_step, train_step

BATCHES = [tiny_run.draw_batch(16, seed) for seed in range(3)]
pytestmark = pytest.mark.usefixtures("compilation_cache")


def test_training_reduces_the_loss(phase_one):
    state, losses = phase_one.new_state(), []
    placed = [place_batch(batch, phase_one.mesh) for batch in BATCHES]
    with jax.transfer_guard("disallow"):  # No step waits for the host.
        for i in range(18):
            state, metrics = phase_one.step(state, placed[i % 3])
            losses.append(metrics.loss)
    losses = np.asarray(losses)
    first, last = np.mean(losses[:3], axis=0), np.mean(losses[-3:], axis=0)
    assert (last < 0.5 * first).all(), (first, last)


def test_a_step_rejects_images_that_are_not_uint8(phase_one, mesh):
    floats = BATCHES[0]._replace(images=BATCHES[0].images.astype(np.float32))
    with pytest.raises(ValueError, match="uint8"):
        phase_one.step(phase_one.new_state(), floats)


def test_the_evaluation_step_is_traced_once_over_batches(phase_one, mesh):
    chex.clear_trace_counter()
    state = phase_one.new_state()
    step = jit_eval_step(phase_one.graphdef, **tiny_run.PIXELS, mesh=mesh)
    step = jax.jit(chex.assert_max_traces(step.__wrapped__, n=1))
    padded = BATCHES[2]._replace(mask=np.arange(16) < 5)
    placed = [place_batch(batch, mesh) for batch in (*BATCHES[:2], padded)]
    with jax.transfer_guard("disallow"):
        sums = [step(state.trainable, state.rest, batch) for batch in placed]
    counts = [int(metrics["count"]) for metrics in sums]
    assert counts == [16, 16, 5]


# Options.


@pytest.mark.parametrize("field", ["rematerialize", "rematerialize_layers"])
def test_rematerialization_gives_the_same_step(field, mesh, phase_one):
    rematerialized = tiny_run.make_phase("phase_one", mesh, **{f"phase_one__{field}": True})
    _, expected = tiny_run.arrays_around_steps(phase_one, BATCHES[:1])
    _, actual = tiny_run.arrays_around_steps(rematerialized, BATCHES[:1])
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", ["rematerialize", "rematerialize_layers"])
def test_rematerialization_stores_fewer_activations(field, phase_one):
    rematerialized = dataclasses.replace(phase_one.objective, **{field: True})
    all_bytes, fewer_bytes = (
        activation_bytes(phase_one.classifier, objective, 4)
        for objective in (phase_one.objective, rematerialized)
    )
    assert fewer_bytes < 0.8 * all_bytes  # Maps between stages and in exits are stored.


def test_bfloat16_feature_maps_keep_float32_parameters(mesh):
    source = tiny_run.make_phase("phase_one", mesh)
    source.classifier.compute_dtype = jnp.dtype("bfloat16")
    graphdef, state = create_state(source.classifier, ALL_PARAMETERS, source.optimizer, mesh)
    arguments = (graphdef, source.objective, ALL_PARAMETERS, source.optimizer)
    step = jit_batch_step(train_step(*arguments, **tiny_run.PIXELS, mesh=mesh), mesh)
    _, expected = tiny_run.arrays_around_steps(source, BATCHES[:1])
    state, metrics = step(state, place_batch(BATCHES[0], mesh))
    arrays = named_arrays(state.trainable) | named_arrays(state.rest)
    assert all(x.dtype == np.float32 for x in arrays.values() if x.dtype.kind == "f")
    chex.assert_tree_all_finite(metrics.loss)
    # bfloat16 has eight bits of mantissa: close to the float32 step, but not equal.
    actual = tiny_run.to_host(arrays)
    differences = [np.abs(actual[n] - expected[n]).max() for n in expected]
    assert 0 < max(differences) < 0.1


# Non-finite losses.


def with_last_bias(state, values):
    """Sets the bias of the last exit's linear layer."""
    names = list(named_arrays(state.trainable))
    leaves, structure = jax.tree.flatten(unpacked(state.trainable))
    leaves[names.index("heads.linears.1.bias")] = np.asarray(values, "float32")
    trainable = packed_like(structure.unflatten(leaves), state.trainable)
    return dataclasses.replace(state, trainable=trainable)


def test_a_halted_state_does_not_change(phase_one):
    batch = place_batch(BATCHES[0], phase_one.mesh)
    state, _ = phase_one.step(phase_one.new_state(), batch)
    state = with_last_bias(state, [3e38, -3e38, 3e38])  # Finite, but its loss is not.
    before = tiny_run.to_host((state.step, state.trainable, state.rest, state.opt_state))
    for _ in range(3):
        state, metrics = phase_one.step(state, batch)
        assert np.isfinite(metrics.loss).tolist() == [True, False]
    assert int(state.halted_at) == int(state.step) == 1
    after = (state.step, state.trainable, state.rest, state.opt_state)
    chex.assert_trees_all_equal(after, before)
    chex.assert_tree_all_finite(after)


def test_a_non_finite_loss_raises_and_keeps_the_last_good_checkpoint(phase_one, tmp_path):
    calls = []

    def step(state, batch):
        calls.append(len(calls))
        if len(calls) == 5:  # The second step of the second epoch.
            state = with_last_bias(state, [0, np.nan, 0])
        return phase_one.step(state, batch)

    with pytest.raises(NonFiniteLossError, match=r"step 5\b.*exit 2\b.*nan"):
        two_epochs(phase_one, tmp_path, step).run(phase_one.new_state())
    with CheckpointStore(tmp_path) as checkpoints:
        state, epoch = checkpoints.restore_latest(phase_one.new_state())
    assert epoch == 1
    chex.assert_tree_all_finite(state)


def two_epochs(phase, folder, step):
    """A loop over the same batches in both epochs, whose validation returns zeros."""
    zeros = ExitMetrics(np.zeros(2), np.zeros(2))
    return TrainingLoop(
        phase="phase_one",
        total_epochs=2,
        steps_per_epoch=len(BATCHES),
        batch_size=16,
        feed=host_feed("numpy", lambda epoch, start: BATCHES[start:], step, phase.mesh),
        validate=lambda state: zeros,
        learning_rate=lambda step: 0.1,
        check_every_steps=50,
        callbacks=default_callbacks(
            folder,
            meta={},
            log=LogConfig(line_every_seconds=0),
            checkpoint=CheckpointConfig(every_steps=0),
            learning_rate=lambda step: 0.1,
        ),
    )
