"""Boosted phase-I heads through a run, its export, early exit and a stream."""

import numpy as np
import pytest
import tiny_run

from imta_jax.cli.run import run
from imta_jax.evaluation import load_predictions
from imta_jax.inference import AdaptiveClassifier, AdaptiveStream, export_run
from imta_jax.techniques import BoostedHeads
from imta_jax.training import load_classifier

OPTIONS = {"max_batch_size": 32, "batch_sizes": (32,), "num_workers": 1}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boosted")
    source = tiny_run.write_dataset(folder / "thirds.npz")
    config = tiny_run.tiny_config(
        source, model__heads="boosted", phase_one__total_epochs=1, phase_two__total_epochs=0
    )
    with tiny_run.compiled_once(folder / "compiled"):
        for mode in ("phase_one", "evaluate"):
            run(config, folder / "run", mode)
    return folder / "run"


@pytest.fixture(scope="module")
def images():
    return tiny_run.draw_images(tiny_run.TEST_IMAGES, 1)[0]


@pytest.fixture(scope="module")
def expected(workdir):
    return load_predictions(workdir / "evaluation" / "logits_test.npz").logits


def test_loading_rebuilds_boosted_heads(workdir):
    classifier, meta = load_classifier(workdir / "phase_one")
    assert isinstance(classifier.heads, BoostedHeads)
    assert meta["model"]["heads"] == "boosted"


def test_run_export_and_evaluation_have_equal_logits(workdir, images, expected, tmp_path):
    export_run(workdir, tmp_path / "export", platforms=("cpu",))
    for adaptive in (
        AdaptiveClassifier.from_run(workdir, **OPTIONS, budget=1.0),
        AdaptiveClassifier.from_export(tmp_path / "export", **OPTIONS, budget=1.0),
    ):
        np.testing.assert_allclose(adaptive.logits(images), expected, atol=1e-4)


def test_early_exit_and_stream_predict_from_the_sum_of_all_exits_so_far(workdir, images, expected):
    classifier, meta = load_classifier(workdir / "phase_one")
    probabilities = np.exp(expected) / np.exp(expected).sum(axis=-1, keepdims=True)
    ordered = np.sort(probabilities[0].max(axis=-1))
    threshold = float(ordered[10:12].mean())
    adaptive = AdaptiveClassifier(
        classifier, [threshold, 0.0], mean=meta["mean"], std=meta["std"], **OPTIONS
    )
    actual = adaptive.predict(images)
    leaves = probabilities[0].max(axis=-1) >= threshold
    assert 0 < leaves.sum() < len(leaves)
    np.testing.assert_array_equal(actual.exit, np.where(leaves, 0, 1))
    labels = expected.argmax(axis=-1)[actual.exit, np.arange(len(leaves))]
    np.testing.assert_array_equal(actual.labels, labels)
    with AdaptiveStream(adaptive) as stream:
        streamed = stream.submit(images).result()
    np.testing.assert_array_equal(streamed.labels, labels)
    np.testing.assert_array_equal(streamed.exit, actual.exit)
