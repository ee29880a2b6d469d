"""On-device data gives the same batches and the same training as host pipelines."""

from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny_run

from imta_jax.data import NO_AUGMENTATION, PaddedCrop, Shard, Split, train_batches
from imta_jax.data.pipeline.on_device import (
    copy_to_devices,
    fits_device,
    on_device_batch,
    on_device_indices,
    stored_bytes,
)
from imta_jax.distributed import data_mesh, place_indices
from imta_jax.training.feed import host_feed
from imta_jax.training.step import jit_batch_step, jit_on_device_step, train_step

DRAW = {"batch_size": 8, "seed": 3, "epoch": 1}
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def split():
    images, labels = tiny_run.draw_images(67, seed=4)
    return Split(images, labels.astype(np.int32), np.arange(67))


@pytest.fixture(scope="module")
def mesh():
    return data_mesh()


def on_device_batches(split, mesh, preprocessing, several=3, **changes):
    """All batches of an epoch, cropped on the device."""
    on_device, actual = copy_to_devices(split, mesh), []
    for indices in on_device_indices(
        split, preprocessing, steps_per_dispatch=several, **{**DRAW, **changes}
    ):
        assert indices.index.shape[0] == several
        placed = place_indices(indices, mesh)
        for i in range(int(indices.steps)):
            batch = on_device_batch(on_device, placed.index[i], placed.corner[i], placed.flip[i])
            actual.append(jax.tree.map(np.asarray, batch))
    return actual


@pytest.mark.parametrize(
    "preprocessing", [NO_AUGMENTATION, PaddedCrop(3, True), PaddedCrop(0, True)]
)
def test_on_device_batches_are_bit_identical_to_host_batches(split, mesh, preprocessing):
    expected = list(train_batches(split, preprocessing, pipeline="numpy", **DRAW))
    actual = on_device_batches(split, mesh, preprocessing)
    assert len(actual) == len(expected) == 8
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("several", [1, 5, 8, 20])
def test_steps_per_dispatch_do_not_change_the_batches(split, mesh, several):
    expected = on_device_batches(split, mesh, PaddedCrop(2, True))
    actual = on_device_batches(split, mesh, PaddedCrop(2, True), several)
    chex.assert_trees_all_equal(actual, expected)


def test_start_step_skips_the_batches_before_it(split, mesh):
    expected = on_device_batches(split, mesh, PaddedCrop(2, True))[5:]
    actual = on_device_batches(split, mesh, PaddedCrop(2, True), start_step=5)
    chex.assert_trees_all_equal(actual, expected)


def test_shards_of_processes_concatenate_to_the_global_indices(split):
    def indices(shard):
        arguments = {**DRAW, "steps_per_dispatch": 8, "shard": shard}
        return next(on_device_indices(split, PaddedCrop(2, True), **arguments))

    expected, shards = indices(Shard()), [indices(Shard(i, 4)) for i in range(4)]
    for field in ("index", "corner", "flip"):
        joined = np.concatenate([getattr(shard, field) for shard in shards], axis=1)
        np.testing.assert_array_equal(joined, getattr(expected, field))


@pytest.mark.parametrize("phase_name", ["phase_one", "phase_two"])
def test_several_steps_per_dispatch_train_as_one_by_one(phase_name, split, mesh):
    phase = tiny_run.make_phase(phase_name, mesh)
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=mesh)
    preprocessing, state, losses = PaddedCrop(2, True), phase.new_state(), []
    one_by_one = host_feed("numpy", lambda epoch, start_step: (), jit_batch_step(step, mesh), mesh)
    for batch in train_batches(split, preprocessing, pipeline="numpy", **DRAW):
        state, metrics = one_by_one.advance(state, batch)
        losses.append(metrics.loss)
    expected, state, actual = tiny_run.to_host(state), phase.new_state(), []
    advance, on_device = jit_on_device_step(step, mesh), copy_to_devices(split, mesh)
    for indices in on_device_indices(split, preprocessing, steps_per_dispatch=3, **DRAW):
        state, metrics = advance(state, on_device, place_indices(indices, mesh))
        actual += list(metrics.loss[: int(indices.steps)])
        assert not np.any(metrics.loss[int(indices.steps) :])
    assert advance._cache_size() == 1
    np.testing.assert_allclose(actual, losses, rtol=1e-4)
    assert int(state.step) == 8
    actual, expected = (jax.tree.leaves(x) for x in (state, expected))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_batches_are_cropped_without_communication(split, mesh):
    indices = next(on_device_indices(split, PaddedCrop(2, True), steps_per_dispatch=1, **DRAW))
    placed, on_device = place_indices(indices, mesh), copy_to_devices(split, mesh)

    def images_of(on_device, indices):
        return on_device_batch(
            on_device, indices.index[0], indices.corner[0], indices.flip[0]
        ).images

    compiled = jax.jit(images_of).lower(on_device, placed).compile()
    text = compiled.as_text()
    assert not [op for op in ("all-gather", "all-to-all", "collective", "all-reduce") if op in text]
    assert not compiled.output_shardings.is_fully_replicated


def test_fits_device_compares_with_a_fraction_of_its_memory(split):
    device = mock.Mock(spec=jax.Device, platform="gpu")
    stored = stored_bytes(len(split), (16, 16, 1))
    device.memory_stats.return_value = {"bytes_limit": 10 * stored}
    assert fits_device(split, 0.1, device)
    assert not fits_device(split, 0.09, device)
    assert fits_device(split, 0.5, jax.devices()[0])


def test_stored_images_are_padded_to_the_lanes_of_a_tpu():
    assert stored_bytes(10, (32, 32, 3)) == 10 * 32 * 32 * 3
    assert stored_bytes(10, (28, 28, 1)) == 10 * 896
