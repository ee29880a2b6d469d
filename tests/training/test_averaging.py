"""The moving average against a computation in NumPy, and what is evaluated and saved."""

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import place_batch
from imta_jax.training.averaging import evaluated_parts
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.state import named_arrays

pytestmark = pytest.mark.usefixtures("compilation_cache")

DECAY, STEPS = 0.25, 4


def averaged_names(phase):
    """Names of the trained parameters and of all batch statistics."""
    state = nnx.state(phase.classifier, nnx.Any(phase.trainable, nnx.BatchStat))
    return set(named_arrays(state))


def values(state):
    return tiny_run.to_host(named_arrays(state.trainable) | named_arrays(state.rest))


def evaluated(state):
    trainable, rest = evaluated_parts(state)
    return tiny_run.to_host(named_arrays(trainable) | named_arrays(rest))


@pytest.fixture(scope="module")
def phase(mesh):
    return tiny_run.make_phase("phase_one", mesh, phase_one__ema_decay=DECAY)


@pytest.fixture(scope="module")
def history(phase):
    """The states before training and after each step, and the last one itself."""
    state = phase.new_state()
    actual = [(values(state), evaluated(state))]
    for step in range(STEPS):
        batch = place_batch(tiny_run.draw_batch(16, step), phase.mesh)
        state, _ = phase.step(state, batch)
        actual.append((values(state), evaluated(state)))
    return actual, state


def test_the_average_follows_its_formula(phase, history):
    actual, _ = history
    names, average = averaged_names(phase), actual[0][0]
    assert any(name.endswith("mean") for name in names) and any("kernel" in name for name in names)
    for step, (after, averaged) in enumerate(actual[1:], start=1):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = {
            name: decay * average[name] + (1 - decay) * x if name in names else x
            for name, x in after.items()
        }
        chex.assert_trees_all_close(averaged, average, rtol=1e-5, atol=1e-6)
    assert decay == DECAY  # Both branches of the minimum were tested.
    assert not np.allclose(averaged["heads.linears.0.kernel"], after["heads.linears.0.kernel"])


def test_the_average_does_not_change_training(phase, history, phase_one):
    batches = [tiny_run.draw_batch(16, step) for step in range(STEPS)]
    _, without = tiny_run.arrays_around_steps(phase_one, batches)
    chex.assert_trees_all_close(history[0][-1][0], without, rtol=1e-4, atol=1e-5)


def test_frozen_statistics_have_exactly_their_values_as_average(mesh):
    phase = tiny_run.make_phase("phase_two", mesh, phase_two__ema_decay=0.9)
    state = phase.new_state()
    before = values(state)
    for step in range(2):
        state, _ = phase.step(state, place_batch(tiny_run.draw_batch(16, step), phase.mesh))
    frozen = {n: x for n, x in before.items() if n.startswith("backbone")}
    chex.assert_trees_all_equal({name: evaluated(state)[name] for name in frozen}, frozen)


def test_a_halted_step_leaves_the_average(phase):
    state = phase.new_state()
    before = evaluated(state)
    batch = tiny_run.draw_batch(16, 0)
    state.trainable.vector.block_until_ready()
    broken = jax.tree.map(lambda x: x * np.float32(np.inf), state.trainable)
    state, _ = phase.step(
        type(state)(
            state.step, broken, state.rest, state.opt_state, state.halted_at, None, state.average
        ),
        place_batch(batch, phase.mesh),
    )
    assert int(state.halted_at) == 0
    chex.assert_trees_all_equal(evaluated(state), before)


def test_a_checkpoint_holds_the_average_as_its_model_and_restores_both(phase, history, tmp_path):
    _, state = history
    with CheckpointStore(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, 0.0)
        checkpoints.wait()
        stored = checkpoints._manager.item_metadata(1)
        actual, _ = checkpoints.restore_latest(phase.new_state())
    assert set(stored.model) == set(named_arrays(nnx.state(phase.classifier)))
    chex.assert_trees_all_equal(actual, state)
    assert jax.tree.structure(actual) == jax.tree.structure(state)
