"""Expected calibration error and reliability bins, on inputs with a known result."""

import numpy as np
import pytest

from imta_jax.evaluation.calibration import (
    calibration_errors,
    expected_calibration_error,
    failure_prediction_auroc,
    reliability,
)


def calibrated() -> tuple[np.ndarray, np.ndarray]:
    """100 images at each of ten confidences, of which exactly that fraction is correct."""
    percents = np.arange(5, 100, 10)
    correct = np.arange(100)[None, :] < percents[:, None]
    return np.repeat(percents / 100, 100), correct.ravel()


def test_calibrated_confidence_has_no_error():
    assert expected_calibration_error(*calibrated()) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(*calibrated(), bins=10) == pytest.approx(0, abs=1e-9)


def test_certain_and_wrong_predictions_have_an_error_of_100():
    assert expected_calibration_error(np.ones(50), np.zeros(50, bool)) == pytest.approx(100)


def test_certain_and_correct_predictions_have_no_error():
    assert expected_calibration_error(np.ones(50, np.float32), np.ones(50, bool)) == 0


def test_error_equals_the_formula_image_by_image():
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(300).astype(np.float32), generator.random(300) < 0.4
    expected = 0.0
    for j in range(15):
        inside = [n for n in range(300) if j / 15 < confidence[n] <= (j + 1) / 15]
        gap = sum(float(confidence[n]) - float(correct[n]) for n in inside)
        expected += 100 * abs(gap) / 300
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_error_does_not_depend_on_image_order():
    generator = np.random.default_rng(1)
    confidence, correct = generator.random(300), generator.random(300) < 0.5
    order = generator.permutation(300)
    assert expected_calibration_error(confidence[order], correct[order]) == pytest.approx(
        expected_calibration_error(confidence, correct)
    )


def test_bins_include_their_upper_edge_and_the_first_includes_zero():
    actual = reliability(np.array([0.0, 0.25, 0.26, 0.5, 1.0]), np.array([0, 1, 1, 0, 1], bool), 4)
    np.testing.assert_array_equal(actual.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(actual.count, [2, 2, 0, 1])
    np.testing.assert_allclose(actual.confidence, [0.125, 0.38, np.nan, 1])
    np.testing.assert_allclose(actual.accuracy, [0.5, 0.5, np.nan, 1])


def test_errors_are_per_exit():
    confidence, correct = calibrated()
    errors = calibration_errors(
        np.stack([confidence, np.ones_like(confidence)]),
        np.stack([correct, np.zeros_like(correct)]),
    )
    np.testing.assert_allclose(errors, [0, 100], atol=1e-9)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([0.5, 1.5], [True, True], 15, r"confidence 1\.5 of image 1"),
        ([np.nan, 0.5], [True, True], 15, "confidence nan of image 0"),
        ([-0.1], [True], 15, r"confidence -0\.1 of image 0"),
        ([0.5, 0.5], [True], 15, r"confidence.*\(2,\).*correct.*\(1,\)"),
        ([], [], 15, r"confidence \(0,\)"),
        ([[0.5]], [[True]], 15, r"\(1, 1\)"),
        ([0.5], [True], 0, "bins=0"),
    ],
)
def test_invalid_arguments_raise(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(np.array(confidence), np.array(correct), bins)


def test_errors_per_exit_of_one_axis_raise():
    with pytest.raises(ValueError, match=r"confidence.*\(3,\).*correct.*\(3,\)"):
        calibration_errors(np.ones(3), np.ones(3, bool))


# Failure prediction.


def test_auroc_counts_pairs_of_a_correct_and_a_wrong_prediction():
    """Correct: .9, .6, .3; wrong: .6, .1. Of 6 pairs 4 are in order and one is a tie."""
    confidence = np.array([[0.9, 0.6, 0.6, 0.3, 0.1]])
    correct = np.array([[True, False, True, True, False]])
    assert failure_prediction_auroc(confidence, correct) == pytest.approx([4.5 / 6])


def test_auroc_equals_the_probability_over_all_pairs():
    generator = np.random.default_rng(3)
    confidence = generator.integers(0, 20, (2, 200)) / 20  # Many ties.
    correct = generator.random((2, 200)) < confidence
    actual = failure_prediction_auroc(confidence, correct)
    for c, right, area in zip(confidence, correct, actual, strict=True):
        difference = c[right][:, None] - c[~right][None, :]
        assert area == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_auroc_depends_on_the_order_of_confidences_only():
    generator = np.random.default_rng(4)
    confidence, correct = generator.random((3, 100)), generator.random((3, 100)) < 0.5
    actual = failure_prediction_auroc(confidence, correct)
    np.testing.assert_allclose(failure_prediction_auroc(confidence**3 / 7, correct), actual)
    np.testing.assert_allclose(failure_prediction_auroc(-confidence, correct), 1 - actual)


def test_auroc_of_equal_confidences_is_one_half():
    actual = failure_prediction_auroc(np.full((1, 4), 0.7), np.array([[1, 0, 0, 1]], bool))
    assert actual == pytest.approx([0.5])


def test_auroc_is_undefined_if_all_predictions_are_correct_or_all_wrong():
    confidence = np.array([[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]])
    correct = np.array([[1, 1], [0, 0], [0, 1]], bool)
    np.testing.assert_array_equal(
        failure_prediction_auroc(confidence, correct), [np.nan, np.nan, 1.0]
    )


def test_auroc_of_different_shapes_raises():
    with pytest.raises(ValueError, match=r"\(2, 3\).*correct.*\(3,\)"):
        failure_prediction_auroc(np.ones((2, 3)), np.ones(3, bool))
