"""Changed code of a custom network with the same parameters: rejected wherever it is loaded."""

from typing import Any

import jax
import pytest
import tiny_run
from flax import nnx
from ml_collections import ConfigDict

import imta_jax
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.errors import InputError
from imta_jax.runtime.registry import BACKBONES
from imta_jax.training import load_classifier, phases, train_phase_one, train_phase_two
from imta_jax.training.checkpoint_reading import read_meta
from imta_jax.training.example_logits import (
    EXAMPLE_LOGITS,
    ExampleLogits,
    check_example_logits,
)

NAME, SOURCE = "with_activation", r".*test_example_logits:register\S+make"


def register(patch, activation):
    def make(options, *, num_classes, image_shape, rngs):
        layers = [nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs), activation]
        layers += [nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs), activation]
        model = nnx.Sequential(*layers)
        return imta_jax.wrap(model, exits=["layers.1"], image_shape=image_shape)

    patch.setitem(BACKBONES._components, NAME, make)


@pytest.fixture(autouse=True)
def _gelu(monkeypatch, compilation_cache):
    register(monkeypatch, nnx.gelu)
    monkeypatch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))


def config_of(source, **changes):
    config = tiny_run.tiny_config(source, phase_one__compute_dtype="bfloat16", **changes)
    config.model = ConfigDict({"backbone": NAME, "initialization": "he_normal"})
    return RunConfig.from_mapping(config)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """A folder with one epoch of phase I."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        register(patch, nnx.gelu)
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        config = config_of(source, phase_one__total_epochs=1)
        train_phase_one(config, load_dataset(config.data), folder)
    return folder


def test_the_same_code_loads_with_any_compute_dtype_of_the_training(trained):
    record = read_meta(trained / "phase_one")[EXAMPLE_LOGITS]
    assert len(record["values"]) == 2 and record["tolerance"] < 0.01
    load_classifier(trained / "phase_one")


def test_other_code_is_rejected_by_load_resume_and_phase_two(trained, source, monkeypatch):
    config = config_of(source)
    dataset = load_dataset(config.data)
    register(monkeypatch, nnx.relu)
    for use in (
        lambda: load_classifier(trained / "phase_one"),
        lambda: train_phase_one(config, dataset, trained),
        lambda: train_phase_two(config, dataset, trained),
    ):
        with pytest.raises(InputError, match=rf"phase_one.*model\.backbone {SOURCE}.*exit 1"):
            use()


def test_networks_of_the_package_record_nothing_and_earlier_checkpoints_are_not_compared():
    meta = {"phase": "phase_one", "model": {"backbone": "resnet"}, "heads": {"transfer": "none"}}
    nothing: Any = None
    assert ExampleLogits(nothing, nothing, meta).record(nothing) == {}
    check_example_logits(nothing, meta, "a checkpoint")
