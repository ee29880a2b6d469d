"""Running statistics as one vector during a dispatch."""

from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.data import PaddedCrop, Split
from imta_jax.data.pipeline.on_device import copy_to_devices, on_device_indices
from imta_jax.distributed import data_mesh, place_indices
from imta_jax.training.packed_statistics import (
    moving_statistics,
    packs_statistics,
    with_packed_statistics,
    without_packed_statistics,
)
from imta_jax.training.step import jit_on_device_step, train_step

pytestmark = pytest.mark.usefixtures("compilation_cache")
ACCELERATOR = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))


@pytest.fixture(scope="module")
def mesh():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def phase(mesh):
    return tiny_run.make_phase("phase_one", mesh)


def trained(phase, packed):
    """The state after two dispatches of two steps."""
    images, labels = tiny_run.draw_images(32, seed=4)
    split = Split(images, labels.astype(np.int32), np.arange(32))
    arguments = (phase.graphdef, phase.objective, phase.trainable, phase.optimizer)
    step = train_step(*arguments, **tiny_run.PIXELS, mesh=phase.mesh)
    advance = jit_on_device_step(step, phase.mesh, packed_statistics=packed)
    state, on_device = phase.new_state(), copy_to_devices(split, phase.mesh)
    draw = {"batch_size": 8, "seed": 3, "epoch": 1, "steps_per_dispatch": 2}
    for indices in on_device_indices(split, PaddedCrop(2, True), **draw):
        state, _ = advance(state, on_device, place_indices(indices, phase.mesh))
    return tiny_run.to_host(state)


def test_training_is_bit_identical_with_packed_statistics(phase):
    packed, by_name = (trained(phase, f) for f in (moving_statistics(phase.classifier), None))
    chex.assert_trees_all_equal(packed, by_name)


def test_the_statistics_of_all_layers_in_training_mode_are_packed(phase, mesh):
    state = phase.new_state()
    statistics = jax.tree.leaves(nnx.filter_state(state.rest, nnx.BatchStat))
    packed = jax.eval_shape(
        lambda s: with_packed_statistics(s, moving_statistics(phase.classifier), mesh), state
    )
    assert packed.rest.vector.size == sum(x.size for x in statistics) > 0
    assert len(packed.rest.large) == len(jax.tree.leaves(state.rest)) - len(statistics)
    restored = jax.eval_shape(without_packed_statistics, packed)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)


def test_frozen_statistics_are_not_packed(mesh):
    phase = tiny_run.make_phase("phase_two", mesh)
    frozen = moving_statistics(phase.classifier.backbone)
    assert not jax.tree.leaves(nnx.filter_state(nnx.state(phase.classifier.backbone), frozen))


def test_statistics_are_packed_on_accelerators_unless_a_step_reads_them_by_name(phase, mesh):
    state = phase.new_state()
    assert packs_statistics(state, ACCELERATOR) and not packs_statistics(state, mesh)
    averaged = tiny_run.make_phase("phase_one", mesh, phase_one__ema_decay=0.9).new_state()
    assert not packs_statistics(averaged, ACCELERATOR)
