"""A Linen network with BatchNorm and Dropout as a run: training, resuming, early exit, export."""

import chex
import jax
import numpy as np
import pytest
import tiny_run
from flax import linen, nnx
from ml_collections import ConfigDict
from resumed_runs import killed_at

import imta_jax
from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.evaluation import load_predictions
from imta_jax.inference import AdaptiveClassifier, load_exported
from imta_jax.inference.export.run_export import export_run
from imta_jax.runtime.registry import BACKBONES
from imta_jax.training import load_classifier, phases, train_phase_one
from imta_jax.training.state import named_arrays


def make_backbone(options, *, num_classes, image_shape, rngs):
    model = linen.Sequential(
        [
            linen.Conv(6, (3, 3)),
            linen.BatchNorm(use_running_average=False),
            linen.Dropout(0.3, deterministic=False),
            linen.Conv(8, (3, 3), strides=(2, 2)),
            linen.relu,
        ]
    )
    return imta_jax.wrap(model, exits=["layers.2"], image_shape=image_shape, rngs=rngs)


@pytest.fixture(scope="module", autouse=True)
def _registered(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._components, "linen", make_backbone)
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def config(source):
    config = tiny_run.tiny_config(source, phase_one__total_epochs=2, phase_two__total_epochs=0)
    config.model = ConfigDict({"backbone": "linen", "initialization": "he_normal"})
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    for mode in ("phase_one", "evaluate"):
        run(config, folder, mode)
    return folder


def arrays_of(folder):
    return tiny_run.to_host(named_arrays(nnx.state(load_classifier(folder)[0])))


def test_statistics_and_keys_advance_and_a_killed_run_ends_with_the_same_state(
    finished, config, tmp_path
):
    expected = arrays_of(finished / "phase_one")
    assert (expected["backbone.module.layers_1.mean"] != 0).all()
    assert expected["backbone.module.linen_rngs.default.count"] > 0
    parsed = RunConfig.from_mapping(config)
    dataset = load_dataset(parsed.data)
    with killed_at(1, 1):
        train_phase_one(parsed, dataset, tmp_path)
    train_phase_one(parsed, dataset, tmp_path)
    chex.assert_trees_all_equal(arrays_of(tmp_path / "phase_one"), expected)


def test_early_exit_and_exports_have_the_logits_of_the_evaluation(finished, tmp_path):
    images, _ = tiny_run.draw_images(tiny_run.TEST_IMAGES, 1)
    logits = load_predictions(finished / "evaluation" / "logits_test.npz").logits
    adaptive = AdaptiveClassifier.from_run(finished, budget=0.9)
    actual = adaptive.predict(images)
    chosen = logits[actual.exit, np.arange(len(images))]
    np.testing.assert_array_equal(actual.labels, chosen.argmax(-1))
    export_run(finished, tmp_path / "export", platforms=["cpu"])
    network = load_exported(tmp_path / "export").network
    exported = jax.jit(network.logits)(network.weights, images)
    np.testing.assert_allclose(exported, logits, rtol=1e-4, atol=1e-4)
