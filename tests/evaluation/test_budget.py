"""Predictions, the budget sweep and per-image records: reference numbers, properties, bad input."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from imta_jax.evaluation import budget as adaptive
from imta_jax.evaluation import predictions
from imta_jax.evaluation import samples as records

GOLDEN = Path(__file__).parents[1] / "data" / "thresholds.npz"
COSTS = np.array([10, 25, 45, 70])


def split(seed: int, num_images: int = 500, num_exits: int = 4, num_classes: int = 7):
    """Logits that favour the label more at each later exit."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images).astype(np.int32)
    logits = generator.normal(size=(num_exits, num_images, num_classes)).astype(np.float32)
    logits[:, np.arange(num_images), labels] += np.linspace(0.5, 3, num_exits)[:, None]
    return predictions.Predictions(logits, labels)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def curve() -> adaptive.BudgetCurve:
    return adaptive.budget_curve(split(0), split(1), COSTS)


def golden_outcomes(golden: dict[str, np.ndarray], name: str) -> adaptive.Outcomes:
    probabilities = golden[f"{name}_probs"]
    correct = probabilities.argmax(axis=-1) == golden[f"{name}_targets"][None, :]
    return adaptive.Outcomes(probabilities.max(axis=-1), correct)


def test_sweep_matches_reference(golden):
    found = adaptive.curve_of_outcomes(
        golden_outcomes(golden, "val"), golden_outcomes(golden, "test"), golden["flops"]
    )
    np.testing.assert_array_equal(found.quota, golden["p_over_20"] / 20)
    np.testing.assert_array_equal(found.thresholds, golden["T"])
    np.testing.assert_allclose(found.validation_accuracy, golden["val_acc"], rtol=1e-12)
    np.testing.assert_allclose(found.accuracy, golden["test_acc"], rtol=1e-12)
    np.testing.assert_allclose(found.validation_cost, golden["val_flops"], rtol=1e-5)
    np.testing.assert_allclose(found.mean_cost, golden["test_flops"], rtol=1e-5)
    np.testing.assert_array_equal(
        np.rint(400 * found.validation_exit_fractions), golden["val_exit_counts"]
    )
    np.testing.assert_array_equal(np.rint(600 * found.exit_fractions), golden["test_exit_counts"])


def test_confidence_is_highest_softmax_probability():
    logits = split(0).logits * 10
    exponentials = np.exp(logits.astype(np.float64))
    expected = (exponentials / exponentials.sum(axis=-1, keepdims=True)).max(axis=-1)
    found = predictions.confidence(logits)
    assert found.dtype == np.float32
    assert found.shape == (4, 500)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_confidence_survives_extreme_logits():
    logits = np.array([[[1e30, -1e30, 0.0], [-300.0, -300.0, -300.0]]], np.float32)
    np.testing.assert_allclose(predictions.confidence(logits), [[1.0, 1 / 3]], rtol=1e-6)


def test_pieces_of_work_join_without_a_seam(monkeypatch):
    logits = split(0).logits
    whole = predictions.confidence(logits), predictions.predicted(logits)
    monkeypatch.setattr(predictions, "_CHUNK_VALUES", 23)
    np.testing.assert_array_equal(predictions.confidence(logits), whole[0])
    np.testing.assert_array_equal(predictions.predicted(logits), whole[1])
    np.testing.assert_array_equal(predictions.predicted(logits), logits.argmax(axis=-1))


@pytest.mark.parametrize("k", [1, 2, 5, 7, 100])
def test_correct_in_top_agrees_with_sorting(k):
    logits, labels = split(2)
    logits = np.round(logits)  # ties: the lower class ranks first
    ranked = np.argsort(-logits, axis=-1, kind="stable")[:, :, :k]
    expected = (ranked == labels[None, :, None]).any(axis=-1)
    np.testing.assert_array_equal(predictions.correct_in_top(logits, labels, k), expected)


def test_anytime_accuracy_is_percent_per_exit():
    logits = np.eye(3, dtype=np.float32)[[[0, 1, 2, 0], [0, 1, 2, 2]]]
    exits = predictions.Predictions(logits, np.array([0, 1, 2, 2], np.int32))
    assert predictions.anytime_accuracy(exits).tolist() == [75.0, 100.0]
    assert predictions.anytime_accuracy(exits, top=3).tolist() == [100.0, 100.0]
    with pytest.raises(ValueError, match="top-0"):
        predictions.anytime_accuracy(exits, top=0)


def test_predictions_survive_the_file(tmp_path):
    path = tmp_path / "evaluation" / "logits_test.npz"
    predictions.save_predictions(path, split(0))
    loaded = predictions.load_predictions(path)
    for found, expected in zip(loaded, split(0), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert [file.name for file in path.parent.iterdir()] == ["logits_test.npz"]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 1, 1], r"shapes \(2, 3\) and \(3,\)"),
        (np.zeros((2, 3, 4)), [0, 1], r"shapes \(2, 3, 4\) and \(2,\)"),
        (np.zeros((2, 0, 4)), np.zeros(0, int), "empty"),
        (np.zeros((2, 3, 4)), [0, 1, 4], r"label 4 of image 2 is outside 0\.\.3"),
        (np.zeros((2, 3, 4)), [0, -1, 4], "label -1 of image 1"),
        (np.zeros((2, 3, 4)), [0.0, 1.0, 1.0], "float64"),
        (np.where(np.arange(24) == 18, np.nan, 0).reshape(2, 3, 4), [0, 1, 1], "exit 1, image 1"),
    ],
)
def test_unusable_predictions_are_refused_by_file_name(tmp_path, logits, labels, message):
    path = tmp_path / "logits.npz"
    with pytest.raises(ValueError, match=message):
        predictions.save_predictions(path, (logits, np.asarray(labels)))
    assert not path.exists()
    np.savez(path, logits=logits, labels=labels)
    with pytest.raises(ValueError, match=rf"logits\.npz.*{message}"):
        predictions.load_predictions(path)


def test_unreadable_predictions_are_refused_by_file_name(tmp_path):
    missing, pickled, plain, cut = (tmp_path / f"{name}.npz" for name in "abcd")
    np.savez(missing, logits=np.zeros((1, 1, 2)))
    np.savez(pickled, logits=np.array([{}], object), labels=np.zeros(1, int))
    with plain.open("wb") as file:
        np.save(file, np.zeros(3))
    predictions.save_predictions(cut, split(0))
    cut.write_bytes(cut.read_bytes()[:2000])
    for path in (missing, pickled, plain, cut):
        with pytest.raises(ValueError, match=rf"{path.name}: expected an \.npz"):
            predictions.load_predictions(path)
    with pytest.raises(FileNotFoundError):
        predictions.load_predictions(tmp_path / "nowhere.npz")


def test_every_image_leaves_exactly_once(curve):
    for fractions, images in ((curve.exit_fractions, 500), (curve.validation_exit_fractions, 500)):
        counts = np.rint(images * fractions)
        np.testing.assert_allclose(images * fractions, counts, atol=1e-9)
        np.testing.assert_array_equal(counts.sum(axis=1), images)
    np.testing.assert_allclose(curve.mean_cost, curve.exit_fractions @ COSTS)


def test_expected_cost_rises_with_quota(curve):
    assert (np.diff(curve.validation_cost) > 0).all()
    assert curve.mean_cost[-1] > curve.mean_cost[0]
    assert ((COSTS[0] <= curve.mean_cost) & (curve.mean_cost <= COSTS[-1])).all()


def test_curve_accepts_pairs_and_costs_with_macs(curve):
    found = adaptive.budget_curve(
        tuple(split(0)), tuple(split(1)), SimpleNamespace(macs=tuple(int(c) for c in COSTS))
    )
    for name, values in dataclasses.asdict(curve).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def test_thresholds_come_from_validation_alone(curve):
    other = adaptive.budget_curve(split(0), split(7), COSTS)
    np.testing.assert_array_equal(other.thresholds, curve.thresholds)
    np.testing.assert_array_equal(other.validation_accuracy, curve.validation_accuracy)
    assert (other.accuracy != curve.accuracy).any()


def test_curve_agrees_with_decisions_image_by_image(curve):
    logits, labels = split(1)
    certain, classes = predictions.confidence(logits), predictions.predicted(logits)
    for b in (0, 19, 39):
        made = adaptive.decisions(certain, classes, COSTS, curve.thresholds[b])
        assert curve.accuracy[b] == pytest.approx(100 * (made.prediction == labels).mean())
        assert curve.mean_cost[b] == pytest.approx(made.cost.mean())
        np.testing.assert_array_equal(made.confidence, certain[made.exit, np.arange(500)])


def test_permuted_images_get_permuted_decisions(curve):
    logits = split(1).logits
    certain, classes = predictions.confidence(logits), predictions.predicted(logits)
    order = np.random.default_rng(0).permutation(500)
    plain = adaptive.decisions(certain, classes, COSTS, curve.thresholds[20])
    permuted = adaptive.decisions(certain[:, order], classes[:, order], COSTS, curve.thresholds[20])
    for found, expected in zip(permuted, plain, strict=True):
        np.testing.assert_array_equal(found, expected[order])


@pytest.mark.parametrize(
    ("test", "costs", "message"),
    [
        (split(1, num_exits=3), COSTS, "4 exits, test outcomes 3"),
        (split(1, num_classes=5), COSTS, "7 classes, test logits 5"),
        (split(1), COSTS[:3], r"costs of shape \(3,\) with predictions of 4 exits"),
        (split(1), [10, 15, 12, 20], "cumulative"),
        (split(1), [0, 1, 2, 3], "cumulative"),
        (split(1), [1, 2, np.nan, 3], "cumulative"),
    ],
)
def test_results_of_another_network_are_refused(test, costs, message):
    with pytest.raises(ValueError, match=message):
        adaptive.budget_curve(split(0), test, costs)


@pytest.mark.parametrize("quotas", [[], 0.5, [0.5, -1.0]])
def test_unusable_quotas_are_refused(quotas):
    with pytest.raises(ValueError, match=r"quotas|not usable"):
        adaptive.budget_curve(split(0), split(1), COSTS, quotas=quotas)


def test_outcomes_must_be_booleans_of_the_same_shape():
    fine = adaptive.outcomes(split(0))
    for correct in (fine.correct[:, :-1], fine.correct.astype(int)):
        with pytest.raises(ValueError, match="expected booleans"):
            adaptive.curve_of_outcomes(fine, adaptive.Outcomes(fine.confidence, correct), COSTS)


def test_decisions_refuse_arrays_that_disagree():
    certain = adaptive.outcomes(split(0)).confidence
    with pytest.raises(ValueError, match=r"expected \[exits, images\] twice"):
        adaptive.decisions(certain, np.zeros((4, 3), int), COSTS, np.full(4, -1e8))


def some_decisions(num_images: int) -> adaptive.Decisions:
    logits = split(3, num_images).logits
    certain, classes = predictions.confidence(logits), predictions.predicted(logits)
    return adaptive.decisions(certain, classes, COSTS, [0.5, 0.5, 0.5, -1e8])


def test_samples_survive_the_file(tmp_path):
    path, made = tmp_path / "evaluation" / "samples.parquet", some_decisions(20)
    index, labels = np.arange(20)[::-1], split(3, 20).labels
    by_budget = {0.3: made, 0.7: made}
    records.write_samples(path, index=index, labels=labels, decisions_by_budget=by_budget)
    table = records.read_samples(path)
    parts = ("exit", "prediction", "confidence", "macs")
    columns = [f"budget_{percent}_{part}" for percent in (30, 70) for part in parts]
    assert list(table.columns) == ["index", "label", *columns]
    np.testing.assert_array_equal(table["index"], index)
    np.testing.assert_array_equal(table["label"], labels)
    for values, part in zip(made, parts, strict=True):
        np.testing.assert_array_equal(table[f"budget_30_{part}"], values)
    assert [file.name for file in path.parent.iterdir()] == ["samples.parquet"]


@pytest.mark.parametrize(
    ("index", "budget", "message"),
    [
        ([0, 1, 1], 0.3, "index 1 is there 2 times"),
        ([0, 1, -1], 0.3, "index -1 in row 2"),
        ([0.0, 1.0, 2.0], 0.3, "float64"),
        ([0, 1, 2, 3], 0.3, r"column label has shape \(3,\)"),
        ([0, 1, 2], 30, "budget 30"),
        ([0, 1, 2], 0.0, "budget 0.0"),
    ],
)
def test_unusable_samples_are_refused(tmp_path, index, budget, message):
    path = tmp_path / "samples.parquet"
    with pytest.raises(ValueError, match=message):
        records.write_samples(
            path,
            index=np.array(index),
            labels=np.zeros(3, int),
            decisions_by_budget={budget: some_decisions(3)},
        )
    assert not path.exists()


def test_file_that_is_not_a_sample_table_is_named(tmp_path):
    path = tmp_path / "samples.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"samples\.parquet: not a Parquet file"):
        records.read_samples(path)
    pd.DataFrame({"index": [1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"samples\.parquet: no column label"):
        records.read_samples(path)
