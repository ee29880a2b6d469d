"""Networks with dropout and other NNX state: they train, resume, are evaluated and exported."""

import json
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stateful_backbone
import tiny_run
from flax import nnx
from ml_collections import ConfigDict
from resumed_runs import killed_at

from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.evaluation import load_predictions
from imta_jax.inference import AdaptiveClassifier, load_exported
from imta_jax.inference.export.run_export import export_run
from imta_jax.models import build_classifier
from imta_jax.training import load_classifier, phases, train_phase_one, train_phase_two
from imta_jax.training.state import named_arrays

pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
TRAIN = {"phase_one": train_phase_one, "phase_two": train_phase_two}
MODEL = {"backbone": stateful_backbone.NAME, "initialization": "he_normal"}


@pytest.fixture(scope="module", autouse=True)
def _registered(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        stateful_backbone.register(patch)
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def config(source):
    # Moving statistics keep the backbone, and so its dropout, in training mode in phase II.
    config = tiny_run.tiny_config(source, "published")
    config.model = ConfigDict(MODEL)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A whole run, from training to results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    for mode in ("phase_one", "phase_two", "evaluate"):
        run(config, folder, mode)
    return folder


def arrays_of(folder):
    return tiny_run.to_host(named_arrays(nnx.state(load_classifier(folder)[0])))


def classifier_of():
    return build_classifier(MODEL, num_classes=3, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))


def test_all_state_is_trained_and_saved(finished):
    new = tiny_run.to_host(named_arrays(nnx.state(classifier_of())))
    one, two = arrays_of(finished / "phase_one"), arrays_of(finished / "phase_two")
    steps = {"phase_one": 3 * 3, "phase_two": 2 * 3}
    assert one["backbone.calls"] == steps["phase_one"]
    assert two["backbone.calls"] == sum(steps.values())
    # Two draws per step.
    count = "backbone.dropout.rngs.count"
    assert one[count] - new[count] == 2 * steps["phase_one"]
    assert (one["backbone.means.low"] != 0).any() and (one["backbone.means.high"] == 0).all()
    np.testing.assert_array_equal(
        one["backbone.dropout.rngs.key"], two["backbone.dropout.rngs.key"]
    )
    assert one["backbone.scale"] == 2


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_a_killed_phase_ends_with_the_same_state(phase, config, finished, tmp_path):
    config = RunConfig.from_mapping(config)
    dataset = load_dataset(config.data)
    if phase == "phase_two":
        (tmp_path / "phase_one").symlink_to(finished / "phase_one")
    with killed_at(1, 2):
        TRAIN[phase](config, dataset, tmp_path)
    TRAIN[phase](config, dataset, tmp_path)
    chex.assert_trees_all_equal(arrays_of(tmp_path / phase), arrays_of(finished / phase))


def test_evaluation_and_exports_are_deterministic(finished, config, tmp_path):
    images, _ = tiny_run.draw_images(tiny_run.TEST_IMAGES, 1)
    evaluated = load_predictions(finished / "evaluation" / "logits_test.npz").logits
    export_run(finished, tmp_path / "export", platforms=["cpu"])
    network = load_exported(tmp_path / "export").network
    for _ in range(2):
        logits = jax.jit(network.logits)(network.weights, images)
        np.testing.assert_allclose(logits, evaluated, rtol=1e-4, atol=1e-4)
    assert json.loads((finished / "results.json").read_text())["exits"]


def test_a_network_that_is_random_in_inference_raises(monkeypatch):
    class AlwaysRandom(stateful_backbone.StatefulBackbone):
        def exit_features(self, i, state):
            return nnx.Dropout(0.5, deterministic=False)(
                super().exit_features(i, state), rngs=self.dropout.rngs
            )

    stateful_backbone.register(monkeypatch, AlwaysRandom)
    with pytest.raises(ValueError, match=r"stage 1.*backbone\.dropout\.rngs\.key"):
        AdaptiveClassifier(classifier_of(), [0.5, 0.0])


def train(config, folder, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    parsed = RunConfig.from_mapping(config)
    train_phase_one(parsed, load_dataset(parsed.data), folder)


def test_a_variable_that_is_replaced_in_the_forward_pass_is_named(config, monkeypatch, tmp_path):
    class Replacing(stateful_backbone.StatefulBackbone):
        def stem(self, images):
            self.calls = stateful_backbone.Counter(self.calls[...] + 1)
            return super().stem(images)

    stateful_backbone.register(monkeypatch, Replacing)
    with pytest.raises(ValueError, match=r"backbone\.calls.*self\.calls\[\.\.\.\]"):
        train(config, tmp_path)


def test_a_variable_without_numbers_is_named(config, monkeypatch, tmp_path):
    class WithText(stateful_backbone.StatefulBackbone):
        def __init__(self, channels, *, rngs):
            super().__init__(channels, rngs=rngs)
            self.note = nnx.Variable("text")

    stateful_backbone.register(monkeypatch, WithText)
    with pytest.raises(ValueError, match=r"'stateful'.*'note'"):
        train(config, tmp_path)


def test_layers_of_flax_follow_the_compute_dtype(config, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train(config, tmp_path, phase_one__compute_dtype="bfloat16", phase_one__total_epochs=1)
    assert "computes in another dtype" not in caplog.text
    arrays = arrays_of(tmp_path / "phase_one")
    assert all(x.dtype == np.float32 for x in arrays.values() if x.dtype.kind == "f")


def test_maps_in_another_dtype_than_configured_are_reported(config, monkeypatch, tmp_path, caplog):
    class InFloat32(stateful_backbone.StatefulBackbone):
        def stage(self, i, state):
            return tuple(x.astype(jnp.float32) for x in super().stage(i, state))

    stateful_backbone.register(monkeypatch, InFloat32)
    train(config, tmp_path, phase_one__compute_dtype="bfloat16", phase_one__total_epochs=1)
    assert "InFloat32" in caplog.text and "stage 1: float32" in caplog.text
    assert "stem: float32" not in caplog.text


@pytest.mark.parametrize(
    "option",
    [
        {"mesh__parameter_shards": 2},
        {"phase_one__accumulate_parts": 2},
        {"phase_one__rematerialize": True},
        {"data__pipeline": "device"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_state_advances_with_every_option_of_the_step(option, config, tmp_path, monkeypatch):
    devices = jax.devices()[:2]
    monkeypatch.setattr(
        phases,
        "mesh_of",
        lambda config: data_mesh(devices, parameter_shards=config.mesh.parameter_shards),
    )
    train(config, tmp_path, phase_one__total_epochs=1, **option)
    arrays = arrays_of(tmp_path / "phase_one")
    assert arrays["backbone.calls"] == 3 * option.get("phase_one__accumulate_parts", 1)
    assert (arrays["backbone.means.low"] != 0).any()
