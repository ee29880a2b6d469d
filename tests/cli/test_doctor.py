"""`--mode=doctor`: the printed description of a run; it trains and writes nothing."""

import sys

import jax
import jax.numpy as jnp
import pytest
import tiny_run
from flax import nnx

from imta_jax.cli import doctor
from imta_jax.cli.doctor import activation_bytes, describe_run
from imta_jax.cli.run import run
from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.errors import MissingPackageError
from imta_jax.evaluation import exit_costs
from imta_jax.training.objectives import ExitMetrics


def test_it_prints_the_run_and_creates_no_folder(source, tmp_path, capsys):
    config = tiny_run.tiny_config(source, phase_one__batch_size=32, mesh__parameter_shards=2)
    run(config, tmp_path / "run", "doctor")
    printed = " ".join(capsys.readouterr().out.split())  # without the columns of the tables
    assert not (tmp_path / "run").exists()
    for text in (
        "8 x cpu",
        "data 4, parameters 2",
        jax.__version__,
        "train 48, validation 24, test 21",
        "phase_one.batch_size 32",
        "model.growth_factors (1, 2)",
        "stored activations of 4 images",
        str(tmp_path / "run"),
    ):
        assert text in printed, text


def test_packages_that_a_run_lacks_are_named(source, tmp_path, capsys, monkeypatch):
    for module in ("pyarrow", "tensorboardX", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r"pyarrow.*\[train\]"):
        run(tiny_run.tiny_config(source), tmp_path / "run", "doctor")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert any("tensorboardX" in note and "[train]" in note for note in notes)
    assert any("matplotlib" in note and "[report]" in note for note in notes)


def test_the_network_table_has_the_costs_of_the_built_network(source, tmp_path):
    config = tiny_run.run_config(source)
    dataset = load_dataset(config.data)
    text = describe_run(config, dataset, tmp_path)
    costs = exit_costs(tiny_run.make_phase("phase_one", data_mesh()).classifier)
    assert f"{costs.macs[-1]:,}" in text and f"{costs.params[-1]:,}" in text


def test_options_that_save_no_memory_on_a_cpu_have_a_note(source, tmp_path):
    def memory(**changes):
        config = tiny_run.run_config(source, **changes)
        return describe_run(config, load_dataset(config.data), tmp_path).partition("== memory")[2]

    plain, note = memory(), "not on a CPU"
    assert note not in plain
    for change in ({"phase_one__rematerialize": True}, {"phase_one__compute_dtype": "bfloat16"}):
        text = memory(**change)
        assert text.startswith(plain.rstrip()) and note in text


def test_activations_in_bfloat16_take_about_half_the_memory():
    phase = tiny_run.make_phase("phase_one", data_mesh())
    network, objective = phase.classifier, phase.objective
    wide = activation_bytes(network, objective, 4)
    network.compute_dtype = jnp.bfloat16
    assert 0.4 * wide < activation_bytes(network, objective, 4) < 0.8 * wide


def test_a_folder_that_cannot_be_created_raises_as_in_a_run(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"--workdir={tmp_path}/file"):
        run(tiny_run.tiny_config(source), tmp_path / "file", "doctor")


def test_an_invalid_mesh_raises_as_in_a_run(source, tmp_path):
    with pytest.raises(ValueError, match=r"mesh\.parameter_shards.* 8: 1, 2, 4, 8; found 3"):
        run(tiny_run.tiny_config(source, mesh__parameter_shards=3), tmp_path, "doctor")


def test_activation_bytes_of_a_small_function_match_by_hand(monkeypatch):
    monkeypatch.setattr(doctor, "optimize_classifier", lambda network, use: network)

    class Square(nnx.Module):
        image_shape = (5,)

        def __init__(self):
            self.weight = nnx.Param(jnp.ones(5))

    class Objective:
        def set_mode(self, classifier):
            """Has none."""

        def __call__(self, classifier, images, labels):
            # d/dw of (w x)^2 stores x and w x, each [N, 5] float32.
            loss = jnp.square(classifier.weight[None] * images).sum()
            return loss, ExitMetrics(loss, loss)

    three, five = (activation_bytes(Square(), Objective(), n) for n in (3, 5))
    assert five - three == 2 * (2 * 4 * 5)
