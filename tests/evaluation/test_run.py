"""Evaluating a run: the recorded source of validation images and the mesh of the config."""

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.evaluation import (
    Predictions,
    collect,
    collect_predictions,
    dataset_record,
    split_predictions,
)
from imta_jax.models import build_classifier


@pytest.fixture(scope="module")
def classifier():
    return build_classifier(
        tiny_run.NETWORK, num_classes=3, image_shape=(16, 16, 1), rngs=nnx.Rngs(0)
    )


def tiny_config(source, **changes) -> RunConfig:
    return RunConfig.from_mapping(tiny_run.tiny_config(source, **changes))


def tiny_predictions() -> Predictions:
    return Predictions(np.zeros((2, 1, 3), np.float32), np.zeros(1, np.int32))


def write_with_validation(source, path):
    """A copy of a dataset that has a validation split of its own."""
    with np.load(source) as arrays:
        own = {f"validation_{part}": arrays[f"test_{part}"] for part in ("images", "labels")}
        np.savez(path, **arrays, **own)
    return path


def test_record_says_whether_validation_images_were_held_out(source, tmp_path):
    own = write_with_validation(source, tmp_path / "own.npz")
    held_out, separate = (load_dataset(tiny_config(path).data) for path in (source, own))
    assert held_out.held_out == ("validation",)
    assert "held out" in dataset_record(held_out)["note"]
    assert separate.held_out == ()
    assert "held out" not in dataset_record(separate)["note"]
    assert "validation split" in dataset_record(separate)["note"]


@pytest.mark.parametrize("parameter_shards", [1, 4])
def test_predictions_use_the_mesh_of_the_config(source, classifier, monkeypatch, parameter_shards):
    meshes = []
    monkeypatch.setattr(
        collect,
        "collect_predictions",
        lambda *_, mesh, **__: meshes.append(mesh) or tiny_predictions(),
    )
    config = tiny_config(source, mesh__parameter_shards=parameter_shards)
    split_predictions(config, load_dataset(config.data), classifier, "test")
    assert meshes == [data_mesh(parameter_shards=parameter_shards)]
    assert dict(meshes[0].shape) == {"data": 8 // parameter_shards, "parameters": parameter_shards}


def test_sharded_parameters_give_the_same_logits(source, classifier, monkeypatch):
    dataset, placed = load_dataset(tiny_config(source).data), []

    def place_parameters(state, mesh):
        placed.append(original(state, mesh))
        return placed[-1]

    original = collect.place_parameters
    monkeypatch.setattr(collect, "place_parameters", place_parameters)
    replicated, sharded = (
        collect_predictions(
            classifier,
            dataset.splits["test"],
            batch_size=16,
            mesh=data_mesh(parameter_shards=shards),
            **tiny_run.PIXELS,
        )
        for shards in (1, 4)
    )
    of_each = [
        [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)] for state in placed
    ]
    assert all(of_each[0])
    assert not all(of_each[1])
    np.testing.assert_array_equal(replicated.labels, sharded.labels)
    np.testing.assert_allclose(replicated.logits, sharded.logits, rtol=1e-5, atol=1e-5)
