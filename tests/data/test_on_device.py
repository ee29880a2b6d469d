"""Images that live on the device: the same batches and the same training as from the host."""

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
)
from imta_jax.distributed import data_mesh, place_rows
from imta_jax.training.feed import host_feed
from imta_jax.training.step import on_batches, on_resident, train_step

DRAW = {"batch_size": 8, "seed": 3, "epoch": 1}


@pytest.fixture(scope="module")
def split():
    images, labels = tiny_run.draw_images(67, seed=4)
    return Split(images, labels.astype(np.int32), np.arange(67))


@pytest.fixture(scope="module")
def mesh():
    return data_mesh()


def cut(split, mesh, preprocessing, several=3, **changes):
    """All batches of an epoch, cut on the device."""
    resident, found = copy_to_devices(split, mesh), []
    for rows in on_device_indices(
        split, preprocessing, steps_per_dispatch=several, **{**DRAW, **changes}
    ):
        assert rows.index.shape[0] == several
        placed = place_rows(rows, mesh)
        for i in range(int(rows.steps)):
            batch = on_device_batch(resident, placed.index[i], placed.corner[i], placed.flip[i])
            found.append(jax.tree.map(np.asarray, batch))
    return found


@pytest.mark.parametrize(
    "preprocessing", [NO_AUGMENTATION, PaddedCrop(3, True), PaddedCrop(0, True)]
)
def test_batches_cut_on_the_device_are_those_of_the_host_bit_for_bit(split, mesh, preprocessing):
    expected = list(train_batches(split, preprocessing, pipeline="numpy", **DRAW))
    found = cut(split, mesh, preprocessing)
    assert len(found) == len(expected) == 8
    tiny_run.assert_same(found, expected)


@pytest.mark.parametrize("several", [1, 5, 8, 20])
def test_steps_per_dispatch_do_not_change_the_batches(split, mesh, several):
    whole = cut(split, mesh, PaddedCrop(2, True))
    tiny_run.assert_same(cut(split, mesh, PaddedCrop(2, True), several), whole)


def test_going_on_in_mid_epoch_yields_the_next_batch(split, mesh):
    whole = cut(split, mesh, PaddedCrop(2, True))
    tiny_run.assert_same(cut(split, mesh, PaddedCrop(2, True), start_step=5), whole[5:])


def test_shares_of_processes_put_side_by_side_are_the_rows_of_one(split):
    def rows(shard):
        arguments = {**DRAW, "steps_per_dispatch": 8, "shard": shard}
        return next(on_device_indices(split, PaddedCrop(2, True), **arguments))

    whole, parts = rows(Shard()), [rows(Shard(i, 4)) for i in range(4)]
    for field in ("index", "corner", "flip"):
        side_by_side = np.concatenate([getattr(part, field) for part in parts], axis=1)
        np.testing.assert_array_equal(side_by_side, getattr(whole, field))


@pytest.mark.parametrize("phase_name", ["phase_one", "phase_two"])
def test_many_steps_in_one_dispatch_train_as_batch_by_batch(phase_name, split, mesh):
    phase = tiny_run.make_phase(phase_name, mesh)
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.tx)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=mesh)
    preprocessing, state, losses = PaddedCrop(2, True), phase.start(), []
    one_by_one = host_feed("numpy", lambda epoch, start_step: (), on_batches(step, mesh), mesh)
    for batch in train_batches(split, preprocessing, pipeline="numpy", **DRAW):
        state, metrics = one_by_one.advance(state, batch)
        losses.append(metrics.loss)
    expected, state, found = tiny_run.to_host(state), phase.start(), []
    advance, resident = on_resident(step, mesh), copy_to_devices(split, mesh)
    for rows in on_device_indices(split, preprocessing, steps_per_dispatch=3, **DRAW):
        state, metrics = advance(state, resident, place_rows(rows, mesh))
        found += list(metrics.loss[: int(rows.steps)])
        assert not np.any(metrics.loss[int(rows.steps) :])
    assert advance._cache_size() == 1
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert int(state.step) == 8
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_image_travels_between_devices(split, mesh):
    rows = next(on_device_indices(split, PaddedCrop(2, True), steps_per_dispatch=1, **DRAW))
    placed, resident = place_rows(rows, mesh), copy_to_devices(split, mesh)

    def images_of(resident, rows):
        return on_device_batch(resident, rows.index[0], rows.corner[0], rows.flip[0]).images

    compiled = jax.jit(images_of).lower(resident, placed).compile()
    text = compiled.as_text()
    assert not [op for op in ("all-gather", "all-to-all", "collective", "all-reduce") if op in text]
    assert not compiled.output_shardings.is_fully_replicated


def test_what_fits_is_a_share_of_the_devices_memory(split):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 10 * split.images.nbytes}

    assert fits_device(split, 0.1, Device())
    assert not fits_device(split, 0.09, Device())
    assert fits_device(split, 0.5, jax.devices()[0])
