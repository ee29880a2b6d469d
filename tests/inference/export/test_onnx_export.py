"""Exports in the formats ONNX and safetensors, with int8 weights, and with model cards."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from imta_jax.inference import AdaptiveClassifier, load_exported
from imta_jax.interop.quantization import exact_int8, quantize, quantize_classifier
from imta_jax.runtime.array_files import read_safetensors
from imta_jax.training.state import named_arrays

onnxruntime = pytest.importorskip("onnxruntime")

from imta_jax.inference.export.onnx_runner import Network  # noqa: E402

CLASSES = ("ant", "bee", "cow", "dog", "eel")
MODES = ("float32", "int8")


@pytest.fixture(scope="module", params=MODES)
def weights(request):
    return request.param


@pytest.fixture(scope="module")
def onnx_folder(classifier, export, tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("onnx") / "export"
    return export(classifier, folder, format="onnx", weights=weights)


@pytest.fixture(scope="module")
def expected(classifier, images, weights):
    """The engine's logits of the network that was exported."""
    network = quantize_classifier(classifier) if weights == "int8" else classifier
    adaptive = AdaptiveClassifier(
        network, [2.0] * 3, mean=(0.4,), std=(0.3,), max_batch_size=64, num_workers=1
    )
    return adaptive, adaptive.logits(images)


def test_onnx_stages_give_the_logits_of_the_engine(onnx_folder, expected, images):
    network, (_, logits) = Network(onnx_folder), expected
    state = [images]
    for stage, of_exit in zip(network.stages, logits, strict=True):
        names = [tensor.name for tensor in stage.get_inputs()]
        *state, actual = stage.run(None, dict(zip(names, state, strict=True)))
        np.testing.assert_allclose(actual, of_exit, atol=1e-4)


def test_onnx_runner_gives_the_labels_and_exits_of_the_engine(onnx_folder, expected, images):
    network, (adaptive, logits) = Network(onnx_folder), expected
    probabilities = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    ordered = np.sort(probabilities, axis=1)
    thresholds = (ordered[:, 18] + ordered[:, 19]) / 2  # in the middle of two images
    network.thresholds = np.array([*thresholds[:2], -1e8], np.float32)
    labels, exits, confidence = network.predict(images)
    predicted = adaptive.with_thresholds(network.thresholds).predict(images)
    np.testing.assert_array_equal(labels, predicted.labels)
    np.testing.assert_array_equal(exits, predicted.exit)
    np.testing.assert_allclose(confidence, predicted.confidence, atol=1e-5)
    assert len(set(exits)) > 1


def test_onnx_folder_runs_without_this_package(onnx_folder, images, tmp_path):
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
    blocked = "import sys; sys.modules.update(dict.fromkeys(('imta_jax', 'jax', 'onnx'))); "
    run = f"import runpy; sys.argv[1:] = {[str(tmp_path / 'a.png')]}; "
    command = f"{blocked}{run}runpy.run_path({str(onnx_folder / 'run.py')!r}, run_name='__main__')"
    output = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert output.split("\t")[1] in CLASSES
    for line in (onnx_folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((onnx_folder / name).read_bytes()).hexdigest() == digest


def test_onnx_folder_can_be_replaced_but_not_loaded(classifier, export, onnx_folder):
    with pytest.raises(ValueError, match=r"format is 'imta_jax ONNX export'.*stablehlo"):
        load_exported(onnx_folder)
    with pytest.raises(FileExistsError, match="overwrite"):
        export(classifier, onnx_folder, format="safetensors")


def test_safetensors_hold_every_variable(classifier, export, tmp_path):
    folder = export(classifier, tmp_path / "export", format="safetensors")
    arrays = read_safetensors(folder / "model.safetensors")
    state = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
    expected = named_arrays(state)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_int8_export_loads_as_the_rounded_network(classifier, export, images, tmp_path):
    folder = export(classifier, tmp_path / "int8", weights="int8", platforms=("cpu",))
    loaded = load_exported(folder)  # compares with the golden logits
    rounded = AdaptiveClassifier(
        quantize_classifier(classifier), [0.3, 0.3, -1e8], mean=(0.4,), std=(0.3,)
    )
    actual = loaded.adaptive(0.5).logits(images)
    np.testing.assert_allclose(actual, rounded.logits(images), atol=1e-4)
    with np.load(folder / "weights.npz") as stored:
        types = {stored[name].dtype for name in stored if stored[name].ndim > 1}
        floats = [n for n in stored if stored[n].dtype == np.float32 and not n.endswith("scale")]
        assert np.dtype(np.int8) in types
        assert all(stored[name].ndim == 1 for name in floats)
    assert json.loads((folder / "manifest.json").read_text())["weights"] == "int8"


def test_quantized_kernels_are_within_half_a_step():
    array = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    array[..., 2] = 0
    actual = quantize(array, 3)
    assert actual.scale.shape == (1, 1, 1, 5) and np.abs(actual.integers).max() == 127
    error = np.abs(actual.dequantized() - array) / actual.scale
    assert error.max() <= 0.5 + 1e-4
    factor = np.array([0.1, 2, 3, -4, 5], np.float32)  # batch normalization
    moved = (actual.dequantized() * factor).transpose(3, 0, 1, 2)
    again = exact_int8(moved)
    assert again is not None and again.scale.shape == (5, 1, 1, 1)
    np.testing.assert_allclose(again.dequantized(), moved, rtol=1e-5)
    assert exact_int8(array) is None
    rows = np.concatenate([moved[:, tap].reshape(5, -1) for tap in range(3)])  # a packed kernel
    again = exact_int8(rows)
    assert again is not None and again.scale.shape == (15, 1)
    np.testing.assert_allclose(again.dequantized(), rows, rtol=1e-5)


def test_model_card_has_costs_thresholds_and_limits(exported_folder):
    card = (exported_folder / "README.md").read_text()
    manifest = json.loads((exported_folder / "manifest.json").read_text())
    for row in manifest["exits"]:
        assert f"{row['macs']:,}" in card
    assert "70.00" in card and "0.3000 0.3000 -" in card
    assert "license" in card.lower() and "Intended use and limits" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "onxx"}, "format 'onxx'.*onnx"),
        ({"weights": "int4"}, "weights 'int4'.*int8"),
        ({"format": "safetensors", "weights": "int8"}, "weights is int8.*safetensors.*float32"),
        ({"format": "onnx", "dtype": "bfloat16"}, "dtype is bfloat16.*onnx.*float32"),
        ({"format": "onnx", "exit_rule": "margin"}, "exit_rule is 'margin'.*StableHLO"),
    ],
)
def test_combination_without_an_export_is_rejected(classifier, export, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export(classifier, tmp_path / "export", **changes)
    assert not list(tmp_path.iterdir())
