"""Sharding: eight devices give the results of one, and every image is evaluated once."""

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.data import Split
from imta_jax.distributed import (
    check_batch_size,
    data_mesh,
    parameter_shards_hint,
    place_batch,
    place_replicated,
)
from imta_jax.evaluation import collect_predictions
from imta_jax.nn.pixels import normalize
from imta_jax.training.state import named_arrays

STEPS = 10
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def one_device():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def eight_devices():
    assert len(jax.devices()) == 8
    return data_mesh()


@pytest.fixture(scope="module")
def classifier(one_device):
    return tiny_run.make_phase("phase_one", one_device).classifier


def test_the_default_mesh_has_every_device(eight_devices):
    assert eight_devices.size == 8 and eight_devices.shape == {"data": 8, "parameters": 1}


def test_shards_of_few_parameters_are_reported_with_what_they_save():
    message = parameter_shards_hint(4, 8_000_000)
    assert "parameter_shards=4" in message and "12 MB" in message
    assert parameter_shards_hint(1, 8_000_000) is parameter_shards_hint(4, 2**30) is None


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_eight_devices_train_like_one(name, one_device, eight_devices):
    results = []
    for mesh in (one_device, eight_devices):
        # In the published phase II, running statistics depend on the batch over all devices.
        phase = tiny_run.make_phase(name, mesh, "published", **{f"{name}__learning_rate": 1e-3})
        state = phase.new_state()
        for i in range(STEPS):
            batch = place_batch(tiny_run.draw_batch(16, seed=i), mesh)
            state, metrics = phase.step(state, batch)
        assert int(state.step) == STEPS
        arrays = named_arrays(state.trainable) | named_arrays(state.rest)
        results.append(tiny_run.to_host(arrays | {"loss": metrics.loss}))
    for key, expected in results[0].items():
        # With statistics per device, the differences would be about 0.1.
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(
            results[1][key] / scale, expected / scale, atol=2e-4, err_msg=key
        )


@pytest.mark.parametrize("count", [1, 21, 40])
def test_evaluation_counts_every_image_once_on_any_number_of_devices(
    classifier, one_device, eight_devices, count
):
    images, labels = tiny_run.draw_images(count, seed=3)
    split = Split(images, labels.astype(np.int32), np.arange(count))
    actual = collect_predictions(
        classifier, split, batch_size=16, mesh=eight_devices, pipeline="numpy", **tiny_run.PIXELS
    )
    assert actual.logits.shape == (2, count, 3)
    np.testing.assert_array_equal(actual.labels, labels)
    evaluated = nnx.clone(classifier)
    evaluated.eval()
    expected = nnx.jit(lambda c, x: c(x))(evaluated, normalize(images, **tiny_run.PIXELS))
    np.testing.assert_allclose(actual.logits, expected, rtol=1e-4, atol=1e-5)
    alone = collect_predictions(
        classifier, split, batch_size=16, mesh=one_device, pipeline="numpy", **tiny_run.PIXELS
    )
    np.testing.assert_allclose(actual.logits, alone.logits, rtol=1e-4, atol=1e-5)


def test_evaluation_does_not_change_the_mode_of_the_classifier(classifier, one_device):
    images, labels = tiny_run.draw_images(3, seed=0)
    split = Split(images, labels.astype(np.int32), np.arange(3))
    classifier.train()
    before = tiny_run.to_host(nnx.state(classifier))
    collect_predictions(
        classifier, split, batch_size=8, mesh=one_device, pipeline="numpy", **tiny_run.PIXELS
    )
    assert not classifier.backbone.stages[0][0].normal[0].reduce.norm.use_running_average
    chex.assert_trees_all_equal(nnx.state(classifier), before)


@pytest.mark.parametrize(
    ("size", "nearest"), [(12, "8 or 16"), (7, "8"), (0, "8"), (-8, "8"), (1001, "1000 or 1008")]
)
def test_an_indivisible_batch_size_is_rejected_with_the_nearest(eight_devices, size, nearest):
    with pytest.raises(ValueError) as error:
        check_batch_size(size, eight_devices, "config.phase_one.batch_size")
    message = str(error.value)
    assert message.startswith(f"config.phase_one.batch_size={size} ")
    assert "8 devices" in message and message.endswith(f": {nearest}")


@pytest.mark.parametrize("size", [8, 64, 1000])
def test_a_divisible_batch_size_passes(eight_devices, one_device, size):
    check_batch_size(size, eight_devices, "batch_size")
    check_batch_size(size + 1, one_device, "batch_size")


def test_a_batch_is_split_evenly(eight_devices):
    placed = place_batch(tiny_run.draw_batch(16, seed=0), eight_devices)
    assert {shard.data.shape[0] for shard in placed.images.addressable_shards} == {2}
    assert len(placed.images.addressable_shards) == 8


@pytest.mark.parametrize("devices", [1, 8])
def test_donating_placed_arrays_does_not_delete_the_originals(devices):
    mesh = data_mesh(jax.devices()[:devices])
    original = {"kernel": jax.numpy.arange(4.0)}
    placed = place_replicated(original, mesh)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(placed)
    assert placed["kernel"].is_deleted()
    np.testing.assert_array_equal(original["kernel"], np.arange(4.0))


def test_a_training_step_does_not_change_the_arrays_of_the_classifier(one_device):
    phase = tiny_run.make_phase("phase_two", one_device)
    before = tiny_run.to_host(nnx.state(phase.classifier))
    phase.step(phase.new_state(), place_batch(tiny_run.draw_batch(16, seed=0), one_device))
    chex.assert_trees_all_equal(nnx.state(phase.classifier), before)
