"""The stages of the floor benchmark compute what training computes. Times are not tested."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from benchmarks import cases, stage_floors
from benchmarks.stage_floors import Stage
from imta_jax.config import RunConfig
from imta_jax.evaluation import exit_costs
from imta_jax.nn.cpu.layout import Layout
from imta_jax.training.setup import new_phase_one

IMAGES = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))


@pytest.fixture(scope="module")
def classifier():
    return new_phase_one(RunConfig.from_mapping(tiny_run.tiny_config("unused.npz")), tiny_run.INFO)


def stages(classifier, layout):
    state = IMAGES
    for i in range(classifier.num_exits):
        stage = Stage(classifier, i, state, layout)
        yield stage
        state, _ = stage.forward(stage.params, stage.rest, stage.state)


@pytest.mark.parametrize("layout", Layout)
def test_multiply_adds_of_stages_add_up_to_those_of_the_network(classifier, layout):
    counted = [stage.counts()[0] for stage in stages(classifier, layout)]
    heads = np.cumsum([width * tiny_run.CLASSES for width in classifier.backbone.feature_widths])
    expected = exit_costs(classifier).macs - heads
    np.testing.assert_array_equal(np.cumsum(counted), len(IMAGES) * expected)


def test_stages_in_sequence_compute_the_features_of_the_network(classifier):
    expected = nnx.clone(classifier).features(IMAGES)
    for stage, features in zip(stages(classifier, Layout.CHWN), expected, strict=True):
        actual = stage.forward(stage.params, stage.rest, stage.state)[1]
        np.testing.assert_allclose(actual, features, rtol=1e-4, atol=1e-5)


def test_a_stage_has_gradients_of_its_own_parameters_only(classifier):
    total = 0
    for stage in stages(classifier, Layout.CHWN):
        inputs = (stage.params, stage.rest, stage.state)
        gradient = jax.tree.map(jnp.ones_like, stage.forward(*inputs))
        to_params = stage.both(*inputs, gradient)[0]
        assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(to_params))
        total += sum(leaf.size for leaf in jax.tree.leaves(to_params))
    backbone = nnx.state(classifier.backbone, nnx.Param)
    assert total == sum(leaf.size for leaf in jax.tree.leaves(backbone))


def test_the_script_writes_rates_stages_and_full_steps(tmp_path, monkeypatch):
    out = tmp_path / "floors.json"
    network = {"networks": ("cifar_5_exits",), "batch_size": 2, "rounds": 1}
    monkeypatch.setattr(stage_floors, "QUICK", network)
    monkeypatch.setattr(stage_floors, "MATRIX", 16)
    monkeypatch.setattr(stage_floors, "ARRAY", 64)
    config = RunConfig.from_mapping(tiny_run.tiny_config("unused.npz"))
    monkeypatch.setattr(cases, "case_config", lambda network: config)
    monkeypatch.setattr(sys, "argv", ["stage_floors.py", f"--out={out}", "--quick"])
    stage_floors.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["part"] for row in rows] == ["rates"] + ["stages"] * 2 * (2 + 1)
    for kind in ("phase_one", "phase_two"):
        *own, step = (row for row in rows if row.get("kind") == kind)
        assert step["stage"] == "all" and step["whole_ms"] > 0
        assert step["macs_ms"] == pytest.approx(sum(row["macs_ms"] for row in own), rel=1e-2)
