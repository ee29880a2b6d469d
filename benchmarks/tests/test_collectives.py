"""What travels between devices: gradients once, batch statistics, and nothing else."""

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from benchmarks.collectives import collective_bytes
from imta_jax.data import PaddedCrop, Split
from imta_jax.data.pipeline.on_device import copy_to_devices, on_device_indices
from imta_jax.distributed import data_mesh, parameter_sharding, place_batch, place_rows
from imta_jax.training.state import create_state, named_arrays
from imta_jax.training.step import on_batches, on_resident, train_step

BATCH = tiny_run.draw_batch(16, seed=0)


def nbytes(tree):
    return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def statistics_bytes(phase):
    """Of the running mean and variance of every batch normalisation in training mode."""
    merged = nnx.merge(phase.graphdef, *nnx.split(phase.classifier)[1:])
    return sum(
        2 * 4 * module.mean[...].size
        for _, module in nnx.iter_graph(merged)
        if hasattr(module, "use_running_average") and not module.use_running_average
    )


def compiled_text(phase, state=None):
    arguments = (state or phase.start(), place_batch(BATCH, phase.mesh))
    return phase.step.lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return data_mesh()


def test_bytes_are_read_from_a_programs_text():
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
    # Mean and mean of squares forwards, and two sums backwards.
    statistics = 2 * statistics_bytes(phase)
    few = 4096  # losses, accuracies, and whether all is finite
    assert trained <= sent["all-reduce"] <= trained + statistics + few, (trained, statistics)


def test_no_batch_is_gathered_from_images_on_the_device(mesh):
    phase = tiny_run.make_phase("phase_one", mesh)
    images, labels = tiny_run.draw_images(64, 0)
    split = Split(images, labels.astype(np.int32), np.arange(64))
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.tx)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=mesh)
    draw = {"batch_size": 16, "seed": 0, "epoch": 0, "steps_per_dispatch": 1}
    rows = place_rows(next(on_device_indices(split, PaddedCrop(2, True), **draw)), mesh)
    arguments = (phase.start(), copy_to_devices(split, mesh), rows)
    sent = collective_bytes(on_resident(step, mesh).lower(*arguments).compile().as_text())
    assert sent == collective_bytes(compiled_text(phase))


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_split_parameters_train_as_whole_ones(name, mesh):
    changes = {f"{name}__learning_rate": 1e-3}
    whole = tiny_run.make_phase(name, mesh, **changes)
    four = data_mesh(parameter_shards=4)
    _, state = create_state(whole.classifier, whole.trainable, whole.tx, four)
    shards = [x for x in jax.tree.leaves(state.opt_state) if not x.sharding.is_fully_replicated]
    assert nbytes([x.addressable_shards[0].data for x in shards]) * 4 == nbytes(shards) > 0
    arguments = (whole.graphdef, whole.objective, whole.trainable, whole.tx)
    step = on_batches(train_step(*arguments, **tiny_run.PIXELS, mesh=four), four, state)
    expected = whole.start()
    for i in range(5):
        batch = tiny_run.draw_batch(16, seed=i)
        state, _ = step(state, place_batch(batch, four))
        expected, _ = whole.step(expected, place_batch(batch, mesh))
    assert step._cache_size() == 1
    for key, value in named_arrays(expected.trainable).items():
        found, scale = named_arrays(state.trainable)[key], max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found / scale, value / scale, atol=2e-4, err_msg=key)


def test_the_largest_axis_that_divides_is_split():
    mesh = data_mesh(parameter_shards=4)

    def axes(*shape):
        return tuple(parameter_sharding(mesh, shape).spec)

    assert axes(3, 3, 8, 16) == (None, None, None, "parameters")
    assert axes(3, 3, 32, 16) == (None, None, "parameters")
    assert axes(3, 3, 6, 7) == () == axes()
    assert tuple(parameter_sharding(data_mesh(), (16,)).spec) == ()


@pytest.mark.parametrize("shards", [0, 3, 16])
def test_shards_that_do_not_divide_the_devices_are_refused(shards):
    with pytest.raises(ValueError, match=rf"is {shards}, but there are 8 .* one of 1, 2, 4, 8"):
        data_mesh(parameter_shards=shards)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(mesh):
    # Nothing in these heads looks at the batch, so that the parts' mean is exact.
    phase = tiny_run.make_phase("phase_two", mesh, phase_two__transfer="identity")
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.tx)
    batch = place_batch(tiny_run.draw_batch(32, seed=0), mesh)
    ends = []
    for parts in (1, 2, 4):
        step = on_batches(train_step(*arguments, **tiny_run.PIXELS, mesh=mesh, parts=parts), mesh)
        state, metrics = step(phase.start(), batch)
        assert int(state.step) == 1
        ends.append(named_arrays(state.trainable) | {"loss": metrics.loss, "top1": metrics.top1})
    for found in ends[1:]:
        for key, value in ends[0].items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6, err_msg=key)


def test_parts_move_batch_statistics_one_after_the_other(mesh):
    phase = tiny_run.make_phase("phase_one", mesh)
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.tx)
    batch = place_batch(tiny_run.draw_batch(32, seed=0), mesh)
    step = on_batches(train_step(*arguments, **tiny_run.PIXELS, mesh=mesh, parts=2), mesh)
    state, metrics = step(phase.start(), batch)
    assert np.isfinite(metrics.loss).all() and int(state.halted_at) == -1
    sent = collective_bytes(step.lower(phase.start(), batch).compile().as_text())
    assert sent.keys() == {"all-reduce"}
