"""Communication between devices: gradients once, and batch statistics."""

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from benchmarks.collectives import collective_bytes
from imta_jax.data import PaddedCrop, Split
from imta_jax.data.pipeline.on_device import copy_to_devices, on_device_indices
from imta_jax.distributed import data_mesh, parameter_sharding, place_batch, place_indices
from imta_jax.training.state import create_state, named_arrays
from imta_jax.training.step import jit_batch_step, jit_on_device_step, train_step

BATCH = tiny_run.draw_batch(16, seed=0)


def nbytes(tree):
    return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def statistics_bytes(phase):
    """Bytes of the running statistics of every BatchNorm in training mode."""
    merged = nnx.merge(phase.graphdef, *nnx.split(phase.classifier)[1:])
    return sum(
        2 * 4 * module.mean[...].size
        for _, module in nnx.iter_graph(merged)
        if hasattr(module, "use_running_average") and not module.use_running_average
    )


def compiled_text(phase, state=None):
    arguments = (state or phase.new_state(), place_batch(BATCH, phase.mesh))
    return phase.step.lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return data_mesh()


def test_bytes_are_parsed_from_the_program_text():
    text = """
      %all-reduce.1 = f32[3,4]{1,0} all-reduce(f32[3,4]{1,0} %a), replica_groups={}
      %x = (f32[2]{0}, bf16[8]{0}) all-reduce(%a, %b), to_apply=%sum
      %g = u8[16,2]{1,0} all-gather(u8[2,2]{1,0} %c), dimensions={0}
      %f = f32[] fusion(%all-reduce.1), calls=%computation
    """
    assert collective_bytes(text) == {"all-reduce": 48 + 8 + 16, "all-gather": 32}


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_a_step_sends_its_gradients_once_and_batch_statistics(name, mesh):
    phase = tiny_run.make_phase(name, mesh)
    sent = collective_bytes(compiled_text(phase))
    assert sent.keys() == {"all-reduce"}
    trained = nbytes(nnx.state(phase.classifier, phase.trainable))
    # Mean and mean of squares in the forward pass, two sums in the backward pass.
    statistics = 2 * statistics_bytes(phase)
    metrics = 4096  # Losses, accuracies and the check that they are finite.
    assert trained <= sent["all-reduce"] <= trained + statistics + metrics, (trained, statistics)


def test_on_device_images_add_no_communication(mesh):
    phase = tiny_run.make_phase("phase_one", mesh)
    images, labels = tiny_run.draw_images(64, 0)
    split = Split(images, labels.astype(np.int32), np.arange(64))
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=mesh)
    draw = {"batch_size": 16, "seed": 0, "epoch": 0, "steps_per_dispatch": 1}
    indices = place_indices(next(on_device_indices(split, PaddedCrop(2, True), **draw)), mesh)
    arguments = (phase.new_state(), copy_to_devices(split, mesh), indices)
    sent = collective_bytes(jit_on_device_step(step, mesh).lower(*arguments).compile().as_text())
    assert sent == collective_bytes(compiled_text(phase))


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_sharded_parameters_train_like_replicated_ones(name, mesh):
    changes = {f"{name}__learning_rate": 1e-3}
    replicated = tiny_run.make_phase(name, mesh, **changes)
    four = data_mesh(parameter_shards=4)
    _, state = create_state(replicated.classifier, replicated.trainable, replicated.optimizer, four)
    shards = [x for x in jax.tree.leaves(state.opt_state) if not x.sharding.is_fully_replicated]
    assert nbytes([x.addressable_shards[0].data for x in shards]) * 4 == nbytes(shards) > 0
    arguments = (
        replicated.graphdef,
        replicated.objective,
        replicated.trainable,
        replicated.optimizer,
    )
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(train_step(*arguments, **tiny_run.PIXELS, mesh=four), n=1)
    step = jit_batch_step(traced, four, state)
    expected = replicated.new_state()
    for i in range(5):
        batch = tiny_run.draw_batch(16, seed=i)
        state, _ = step(state, place_batch(batch, four))
        expected, _ = replicated.step(expected, place_batch(batch, mesh))
    for key, value in named_arrays(expected.trainable).items():
        actual, scale = named_arrays(state.trainable)[key], max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(actual / scale, value / scale, atol=2e-4, err_msg=key)


def test_the_largest_divisible_axis_is_sharded():
    mesh = data_mesh(parameter_shards=4)

    def axes(*shape):
        return tuple(parameter_sharding(mesh, shape).spec)

    assert axes(3, 3, 8, 16) == (None, None, None, "parameters")
    assert axes(3, 3, 32, 16) == (None, None, "parameters")
    assert axes(3, 3, 6, 7) == () == axes()
    assert tuple(parameter_sharding(data_mesh(), (16,)).spec) == ()


@pytest.mark.parametrize("shards", [0, 3, 16])
def test_a_shard_count_that_does_not_divide_the_devices_raises(shards):
    with pytest.raises(ValueError, match=rf"parameter_shards.* 8: 1, 2, 4, 8.*{shards}$"):
        data_mesh(parameter_shards=shards)


def test_accumulated_gradients_equal_those_of_the_full_batch(mesh):
    # These heads have no BatchNorm, so the mean over the parts is exact.
    phase = tiny_run.make_phase("phase_two", mesh, phase_two__transfer="identity")
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    batch = place_batch(tiny_run.draw_batch(32, seed=0), mesh)
    results = []
    for parts in (1, 2, 4):
        step = jit_batch_step(
            train_step(*arguments, **tiny_run.PIXELS, mesh=mesh, accumulate_parts=parts), mesh
        )
        state, metrics = step(phase.new_state(), batch)
        assert int(state.step) == 1
        results.append(named_arrays(state.trainable) | {"loss": metrics.loss, "top1": metrics.top1})
    for actual in results[1:]:
        chex.assert_trees_all_close(actual, results[0], rtol=1e-4, atol=1e-6)


def test_accumulation_updates_batch_statistics_part_by_part(mesh):
    phase = tiny_run.make_phase("phase_one", mesh)
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    batch = place_batch(tiny_run.draw_batch(32, seed=0), mesh)
    step = jit_batch_step(
        train_step(*arguments, **tiny_run.PIXELS, mesh=mesh, accumulate_parts=2), mesh
    )
    state, metrics = step(phase.new_state(), batch)
    assert np.isfinite(metrics.loss).all() and int(state.halted_at) == -1
    sent = collective_bytes(step.lower(phase.new_state(), batch).compile().as_text())
    assert sent.keys() == {"all-reduce"}
