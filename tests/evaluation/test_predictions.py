"""Predictions of a split: confidences, accuracies and the file."""

import re

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from sample_logits import split
from unreadable_archives import unreadable

from imta_jax.evaluation import predictions


def test_confidence_is_highest_softmax_probability():
    logits = split(0).logits * 10
    exponentials = np.exp(logits.astype(np.float64))
    expected = (exponentials / exponentials.sum(axis=-1, keepdims=True)).max(axis=-1)
    actual = predictions.confidence(logits)
    assert actual.dtype == np.float32
    assert actual.shape == (4, 500)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_confidence_is_finite_for_extreme_logits():
    logits = np.array([[[1e30, -1e30, 0.0], [-300.0, -300.0, -300.0]]], np.float32)
    np.testing.assert_allclose(predictions.confidence(logits), [[1.0, 1 / 3]], rtol=1e-6)


def test_confidences_and_predictions_do_not_depend_on_the_chunk_size(monkeypatch):
    logits = split(0).logits
    unchunked = predictions.confidence(logits), predictions.predicted(logits)
    monkeypatch.setattr(predictions, "_CHUNK_VALUES", 23)
    np.testing.assert_array_equal(predictions.confidence(logits), unchunked[0])
    np.testing.assert_array_equal(predictions.predicted(logits), unchunked[1])
    np.testing.assert_array_equal(predictions.predicted(logits), logits.argmax(axis=-1))


@pytest.mark.parametrize("k", [1, 2, 5, 7, 100])
def test_correct_in_top_agrees_with_sorting(k):
    logits, labels = split(2)
    logits = np.round(logits)  # Ties, where the lower class ranks first.
    ranked = np.argsort(-logits, axis=-1, kind="stable")[:, :, :k]
    expected = (ranked == labels[None, :, None]).any(axis=-1)
    np.testing.assert_array_equal(predictions.correct_in_top(logits, labels, k), expected)


def test_anytime_accuracy_is_percent_per_exit():
    logits = np.eye(3, dtype=np.float32)[[[0, 1, 2, 0], [0, 1, 2, 2]]]
    exits = predictions.Predictions(logits, np.array([0, 1, 2, 2], np.int32))
    assert predictions.anytime_accuracy(exits).tolist() == [75.0, 100.0]
    assert predictions.anytime_accuracy(exits, top=3).tolist() == [100.0, 100.0]
    with pytest.raises(ValueError, match="k=0"):
        predictions.anytime_accuracy(exits, top=0)


def test_saved_predictions_are_loaded_unchanged(tmp_path):
    path = tmp_path / "evaluation" / "logits_test.npz"
    predictions.save_predictions(path, split(0))
    loaded = predictions.load_predictions(path)
    chex.assert_trees_all_equal(loaded, split(0), strict=True)
    assert [file.name for file in path.parent.iterdir()] == ["logits_test.npz"]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 1, 1], r"\(2, 3\).*\(3,\)"),
        (np.zeros((2, 3, 4)), [0, 1], r"\(2, 3, 4\).*\(2,\)"),
        (np.zeros((2, 3, 4)), np.eye(3), r"\(2, 3, 4\).*\(3, 3\).*one label per image"),
        (np.zeros((2, 0, 4)), np.zeros(0, int), r"\(2, 0, 4\)"),
        (np.zeros((2, 3, 1)), [0, 0, 0], r"\(2, 3, 1\).*two classes"),
        (np.zeros((2, 3, 4)), [0, 1, 4], r"label 4 of image 2.*0\.\.3"),
        (np.zeros((2, 3, 4)), [0, -1, 4], "label -1 of image 1"),
        (np.zeros((2, 3, 4)), [0.0, 1.0, 1.0], "labels.*float64"),
        (np.where(np.arange(24) == 18, np.nan, 0).reshape(2, 3, 4), [0, 1, 1], "exit 2, image 1"),
    ],
)
def test_invalid_predictions_raise_with_the_file_name(tmp_path, logits, labels, message):
    path = tmp_path / "logits.npz"
    with pytest.raises(ValueError, match=message):
        predictions.save_predictions(path, (logits, np.asarray(labels)))
    assert not path.exists()
    np.savez(path, logits=logits, labels=labels)
    with pytest.raises(ValueError, match=rf"logits\.npz.*{message}"):
        predictions.load_predictions(path)


def test_unreadable_files_raise_with_their_name(tmp_path):
    incomplete, pickled, plain, cut = (tmp_path / f"{name}.npz" for name in "abcd")
    np.savez(incomplete, logits=np.zeros((1, 1, 2)))
    np.savez(pickled, logits=np.array([{}], object), labels=np.zeros(1, int))
    with plain.open("wb") as file:
        np.save(file, np.zeros(3))
    predictions.save_predictions(cut, split(0))
    cut.write_bytes(cut.read_bytes()[:2000])
    others = []
    for kind in ("encrypted", "method", "shape"):
        predictions.save_predictions(tmp_path / f"{kind}.npz", split(0))
        others.append(unreadable(tmp_path / f"{kind}.npz", "labels", kind))
    for path in (incomplete, pickled, plain, cut, *others):
        with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
            predictions.load_predictions(path)
    with pytest.raises(FileNotFoundError):
        predictions.load_predictions(tmp_path / "missing.npz")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int8"])
def test_low_precision_logits_are_accepted(tmp_path, name):
    dtype = jnp.dtype(name)
    logits, labels = split(0)
    low = logits.astype(dtype)
    for logits in (low, jnp.asarray(low)):
        actual = predictions.checked_predictions((logits, labels), "test")
        assert actual.logits.dtype == np.float32
        np.testing.assert_array_equal(actual.logits, low.astype(np.float32))
    predictions.save_predictions(tmp_path / "a.npz", (jnp.asarray(low), labels))
    loaded = predictions.load_predictions(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.logits, low.astype(np.float32))


def test_bfloat16_saved_by_numpy_is_read_and_float8_raises_with_the_fix(tmp_path):
    logits, labels = split(0)
    low = logits.astype(jnp.bfloat16)
    np.savez(tmp_path / "a.npz", logits=low, labels=labels)
    loaded = predictions.load_predictions(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.logits, low.astype(np.float32))
    np.savez(tmp_path / "b.npz", logits=logits.astype(jnp.float8_e4m3fn), labels=labels)
    with pytest.raises(ValueError, match=r"b\.npz.*V1.*float32.*save_predictions"):
        predictions.load_predictions(tmp_path / "b.npz")


@pytest.mark.parametrize("dtype", [bool, complex, "U3", object])
def test_logits_that_are_not_real_numbers_raise(dtype):
    logits, labels = split(0)
    with pytest.raises(ValueError, match=rf"logits.*{re.escape(str(np.dtype(dtype)))}"):
        predictions.checked_predictions((logits.astype(dtype), labels), "test")


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_percentages_instead_of_logits_raise(decimals):
    logits, labels = split(0, num_classes=2)
    exponentials = np.exp(logits)
    percentages = (100 * exponentials / exponentials.sum(axis=-1, keepdims=True)).round(decimals)
    with pytest.raises(ValueError, match=r"exit 1\b.*percentages.*/ 100"):
        predictions.checked_predictions((percentages, labels), "test")
    predictions.checked_predictions((percentages - 50, labels), "test")


def test_exits_in_the_unit_interval_exclude_votes():
    logits, _ = split(0, num_exits=2)
    sigmoids, votes = 1 / (1 + np.exp(-logits)), (logits > 0).astype(np.float32)
    stacked = np.stack([logits[0], sigmoids[0], votes[0], sigmoids[1]])
    assert predictions.exits_in_unit_interval(stacked) == [2, 4]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_probabilities_instead_of_logits_raise(dtype):
    logits, labels = split(0)
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    low_precision = probabilities.astype(jnp.dtype(dtype))
    with pytest.raises(ValueError, match=r"exit 1\b.*np\.log"):
        predictions.checked_predictions((low_precision, labels), "test")
    mixed = np.concatenate([logits[:1], probabilities[1:]])
    with pytest.raises(ValueError, match=r"exit 2\b.*np\.log"):
        predictions.checked_predictions((mixed, labels), "test")
    logs = np.log(probabilities)
    np.testing.assert_allclose(
        predictions.confidence(predictions.checked_predictions((logs, labels), "test").logits),
        predictions.confidence(logits),
        rtol=1e-5,
    )
