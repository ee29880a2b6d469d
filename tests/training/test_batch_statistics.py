"""Statistics of BatchNorm over groups of images: values, devices, messages and invalid sizes."""

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import data_mesh, place_batch
from imta_jax.nn.batch_norm import set_statistics_groups
from imta_jax.planning.profile import profile
from imta_jax.training.checks import check_training_config
from imta_jax.training.recipe import (
    RECIPE,
    AnotherRecipeError,
    check_same_recipe,
    recipe_record,
)
from imta_jax.training.state import named_arrays

BATCH = tiny_run.draw_batch(32, seed=0)
PER_DEVICE = {"phase_one__batch_statistics": "per_device"}
GROUPS = {"phase_one__batch_statistics": "group", "phase_one__statistics_group_size": 4}
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """Compiles in half of the time; messages between devices stay the same."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(devices, name="phase_one", preset="paper", **changes):
    """A phase on some CPU devices with batches of 32 images."""
    mesh = data_mesh(jax.devices()[:devices])
    return tiny_run.make_phase(name, mesh, preset, **{f"{name}__batch_size": 32}, **changes)


def arrays_after_a_step(phase):
    state, metrics = phase.step(phase.new_state(), place_batch(BATCH, phase.mesh))
    arrays = named_arrays(state.trainable) | named_arrays(state.rest) | {"loss": metrics.loss}
    return tiny_run.to_host(arrays)


def assert_close(actual, expected):
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(actual[name] / scale, value / scale, atol=5e-5, err_msg=name)


@pytest.fixture(scope="module")
def grouped():
    """The arrays after a step with groups of 4 images on 8 devices."""
    return arrays_after_a_step(make(8, **GROUPS))


@pytest.mark.parametrize("devices", [1, 2])
def test_groups_do_not_depend_on_the_number_of_devices(devices, grouped):
    assert_close(arrays_after_a_step(make(devices, **GROUPS)), grouped)


def test_per_device_equals_groups_of_the_images_of_a_device(grouped):
    chex.assert_trees_all_equal(arrays_after_a_step(make(8, **PER_DEVICE)), grouped)


def test_a_group_may_span_devices(grouped):
    sixteen = {**GROUPS, "phase_one__statistics_group_size": 16}
    spanned = arrays_after_a_step(make(8, **sixteen))
    assert_close(spanned, arrays_after_a_step(make(1, **sixteen)))
    assert np.abs(spanned["loss"] - grouped["loss"]).max() > 1e-4


def lowered_text(phase):
    return phase.step.lower(phase.new_state(), place_batch(BATCH, phase.mesh)).as_text()


def test_one_device_has_the_program_of_global_statistics():
    assert lowered_text(make(1, **PER_DEVICE)) == lowered_text(make(1))


def messages_in_a_row(phase):
    arguments = (phase.new_state(), place_batch(BATCH, phase.mesh))
    text = phase.step.lower(*arguments).compile().as_text()
    assert set(profile(text, steps=1, images_per_chip=4).step.collectives) == {"all-reduce"}
    return profile(text, steps=1, images_per_chip=4).chain


@pytest.mark.parametrize(("changes", "parts"), [(GROUPS, 1), (PER_DEVICE, 2)])
def test_no_message_waits_for_another_within_the_network(changes, parts):
    phase = make(8, **changes, phase_one__accumulate_parts=parts)
    # Each part of an accumulated batch updates the running statistics.
    assert messages_in_a_row(phase) <= 3 * parts


def test_phase_two_heads_have_groups():
    changes = {name.replace("one", "two"): value for name, value in GROUPS.items()}
    eight, one = (make(n, "phase_two", "published", **changes) for n in (8, 1))
    assert_close(arrays_after_a_step(eight), arrays_after_a_step(one))


def test_a_phase_does_not_resume_with_other_statistics(source):
    before, now = (tiny_run.run_config(source, **changes) for changes in ({}, PER_DEVICE))
    recorded = {RECIPE: recipe_record(before.phase_one)}
    with pytest.raises(AnotherRecipeError, match=r"phase_one.batch_statistics.*per_device"):
        check_same_recipe(recorded, recipe_record(now.phase_one), "checkpoint 1")


def test_flax_batch_norm_has_no_groups():
    network = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    set_statistics_groups(network, 1)
    with pytest.raises(ValueError, match=r"layers.*BatchNorm.*batch_statistics"):
        set_statistics_groups(network, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_statistics": "group"}, r"phase_one.statistics_group_size.*2 or more.*group.*0"),
        ({"statistics_group_size": 4}, r"phase_one.statistics_group_size.*0.*global.*4"),
        ({**GROUPS, "statistics_group_size": 3}, r"statistics_group_size.*32 images.*4 images.*3"),
        ({"batch_statistics": "per_device", "batch_size": 8}, r"batch_statistics.*per_device.*1"),
    ],
)
def test_invalid_groups_are_rejected(changes, message, source):
    fields = {f"phase_one__{name.removeprefix('phase_one__')}": v for name, v in changes.items()}
    config = tiny_run.run_config(source, **{"phase_one__batch_size": 32, **fields})
    with pytest.raises(ValueError, match=message):
        check_training_config(config)
