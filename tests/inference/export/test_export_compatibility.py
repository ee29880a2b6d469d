"""Exports of earlier versions of the package load and give the recorded logits.

`tests/data/export_v1` is a phase-II MSDNet with two exits, written in format version 1.
`tests/data/export_v1_logits.npz` holds images and their recorded logits.
"""

from pathlib import Path

import numpy as np
import pytest

from imta_jax.inference import AdaptiveClassifier, load_exported
from imta_jax.inference.export import stablehlo_folder

DATA = Path(__file__).parents[2] / "data"


def test_export_of_version_1_gives_the_recorded_logits():
    exported = load_exported(DATA / "export_v1")
    assert exported.manifest["format_version"] == 1
    assert exported.class_names == ("ant", "bee", "cow")
    assert [point.budget for point in exported.points] == [0.6, 1.0]
    with np.load(DATA / "export_v1_logits.npz") as file:
        images, logits = file["images"], file["logits"]
    adaptive = AdaptiveClassifier(exported.network, [0.0, 0.0], max_batch_size=8)
    np.testing.assert_allclose(adaptive.logits(images), logits, atol=1e-5)


def test_export_of_version_1_accepts_only_the_size_of_the_network():
    transform = load_exported(DATA / "export_v1").transform
    height, width, channels = transform.image_shape
    assert transform.padding is None and transform.exif_orientation == "ignore"
    image = np.ones(transform.image_shape, np.uint8)
    np.testing.assert_array_equal(transform.apply(image), image)
    with pytest.raises(ValueError, match=rf"{height - 4} x {width}.*{height} x {width}.*version 1"):
        transform.apply(np.ones((height - 4, width, channels), np.uint8))


def test_export_of_version_1_gives_the_recorded_exits():
    exported = load_exported(DATA / "export_v1")
    with np.load(DATA / "export_v1_logits.npz") as file:
        images, logits = file["images"], file["logits"]
    predictions = exported.adaptive(0.6, max_batch_size=8).predict(images)
    np.testing.assert_array_equal(predictions.exit, [0, 0, 0, 1, 0, 0])
    at_exit = logits[predictions.exit, np.arange(len(images))]
    np.testing.assert_array_equal(predictions.labels, at_exit.argmax(axis=-1))
    np.testing.assert_array_equal(predictions.macs, np.array([17716, 20268])[predictions.exit])


def test_export_without_stages_for_larger_batches_gives_the_same_exits(
    classifier, images, exported_folder, export, tmp_path, monkeypatch
):
    monkeypatch.setattr(stablehlo_folder, "computes_faster_images_last", lambda _: False)
    earlier = load_exported(export(classifier, tmp_path / "earlier"))
    today = load_exported(exported_folder)
    assert earlier.network.images_last is None and today.network.images_last is not None
    expected, actual = (
        one.adaptive(0.4, max_batch_size=64).predict(images) for one in (earlier, today)
    )
    np.testing.assert_array_equal(actual.exit, expected.exit)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_allclose(actual.confidence, expected.confidence, atol=1e-5)
