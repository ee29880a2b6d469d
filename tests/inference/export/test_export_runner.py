"""`run.py` of a StableHLO export: the engine's predictions with jax, NumPy and flatbuffers only."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from limited_imports import import_only
from PIL import Image

from imta_jax.inference import load_exported
from imta_jax.inference.export.folder import write_checksums
from imta_jax.inference.export.stablehlo_runner import Network

# What `pip install jax numpy flatbuffers` installs; the standard library is also allowed.
INSTALLED = {"jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy"}
ALLOWED = {*INSTALLED, "image_reading"}  # a folder of the export
BLOCK = import_only(ALLOWED)
PREDICT = """
import runpy
import numpy as np
network = runpy.run_path(sys.argv[1] + "/run.py")["Network"](sys.argv[1], 0.5)
labels, exits, confidence = network.predict(np.load(sys.argv[2]))
np.savez(sys.argv[3], labels=labels, exits=exits, confidence=confidence)
"""
# Name -> options of the export.
EXPORTS = {
    "confidence": None,  # the export of all tests
    "patience": {"exit_rule": "patience"},
    "int8": {"weights": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module", params=EXPORTS)
def folder(request, classifier, export, exported_folder, tmp_path_factory):
    options = EXPORTS[request.param]
    if options is None:
        return exported_folder
    path = tmp_path_factory.mktemp("runner") / request.param
    return export(classifier, path, platforms=("cpu",), **options)


@pytest.fixture(scope="module")
def exported(folder):
    return load_exported(folder, check_golden=False)


def thresholds_between_images(exported, images):
    """Thresholds [3] in the middle of two scores, at which images leave at every exit."""
    if exported.network.rule is not None:
        return [2.0, 2.0, -1e8]  # patience: two agreeing exits
    logits = exported.adaptive(0.5).logits(images).astype(np.float32)
    ordered = np.sort(1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1), axis=1)
    return [*((ordered[:2, 18] + ordered[:2, 19]) / 2).tolist(), -1e8]


def test_runner_gives_the_predictions_of_the_engine(folder, exported, images):
    network = Network(folder, 0.5)
    network.thresholds = thresholds_between_images(exported, images)
    labels, exits, confidence = network.predict(images)
    expected = exported.adaptive(0.5).with_thresholds(network.thresholds).predict(images)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_array_equal(exits, expected.exit)
    np.testing.assert_allclose(confidence, expected.confidence, atol=1e-4)
    assert len(set(exits)) > 1


def test_runner_needs_only_jax_numpy_and_flatbuffers(exported_folder, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    arguments = [exported_folder, tmp_path / "images.npy", tmp_path / "found.npz"]
    subprocess.run(
        [sys.executable, "-c", BLOCK + PREDICT, *arguments],
        cwd=tmp_path,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": ""},
        check=True,
    )
    with np.load(tmp_path / "found.npz") as actual:
        for name, here in zip(
            ("labels", "exits"), Network(exported_folder, 0.5).predict(images), strict=False
        ):
            np.testing.assert_array_equal(actual[name], here)


def test_runner_classifies_image_files(exported_folder, images, tmp_path):
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
    network = Network(exported_folder, 0.5)
    np.testing.assert_array_equal(network.read(tmp_path / "a.png"), images[0])
    with pytest.raises(ValueError, match=r"budget is 0\.1"):
        Network(exported_folder, 0.1)


def test_each_class_must_have_a_name(exported_folder, tmp_path):
    folder = shutil.copytree(exported_folder, tmp_path / "export")
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": ["ant"]}))
    (folder / "SHA256SUMS").unlink()
    write_checksums(folder)
    with pytest.raises(ValueError, match=r"class_names is 1; .* 5"):
        Network(folder, 0.5)


def test_changed_runner_is_found(exported_folder, tmp_path):
    folder = shutil.copytree(exported_folder, tmp_path / "export")
    (folder / "run.py").write_text("print('other')")
    with pytest.raises(ValueError, match=r"export/run\.py"):
        load_exported(folder)
