"""Thresholds with a guarantee: simulated coverage, exact bounds, invalid input."""

import numpy as np
import pytest
from sample_logits import COSTS, measure, random_outcomes
from scipy.stats import binom

from imta_jax.evaluation.methods.optimized import one_exit_thresholds
from imta_jax.evaluation.methods.risk_control import (
    GUARANTEES,
    binomial_lower_bound,
    binomial_upper_bound,
    common_thresholds,
    excess_errors,
    risk_controlled_thresholds,
)
from imta_jax.evaluation.thresholds import exit_of

TOLERANCE = 5.0


@pytest.fixture(scope="module")
def population():
    """Outcomes of 20,000 images, a fine family of thresholds and the risk of each row."""
    images = random_outcomes(0, 20_000, ties=False)
    family = common_thresholds(4, 400)
    excess = excess_errors(images.correct, exit_of(images.confidence, family))
    clipped = 100 * (excess == 1).mean(axis=1)
    return images, family, {"expectation": clipped, "clipped": clipped, "net": 100 * excess.mean(1)}


def selected_risks(population, guarantee: str, level: float = 0.95) -> np.ndarray:
    """True risk, in percentage points, of the thresholds selected on 400 validation sets."""
    images, family, risks = population
    generator, actual = np.random.default_rng(1), []
    for _ in range(400):
        validation = generator.integers(0, images.correct.shape[1], 500)
        thresholds = risk_controlled_thresholds(
            images.confidence[:, validation],
            images.correct[:, validation],
            TOLERANCE,
            guarantee=guarantee,
            confidence_level=level,
            family=family,
        )
        actual.append(risks[guarantee][(family == thresholds).all(axis=1).argmax()])
    return np.array(actual)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_risk_exceeds_the_tolerance_as_rarely_as_guaranteed(population, level):
    allowed = 1 - level
    slack = 3 * np.sqrt(allowed * level / 400)  # Three standard deviations over 400 sets.
    clipped = np.mean(selected_risks(population, "clipped", level) > TOLERANCE)
    assert clipped <= allowed + slack
    assert clipped >= allowed / 3  # A loose bound would exceed it more rarely.
    net = selected_risks(population, "net", level)
    assert np.mean(net > TOLERANCE) <= allowed + slack
    assert net.mean() > TOLERANCE / 4


def test_conformal_risk_is_within_the_tolerance_on_average(population):
    actual = selected_risks(population, "expectation")
    assert 0.9 * TOLERANCE <= actual.mean() <= TOLERANCE + 3 * actual.std() / np.sqrt(len(actual))


def test_clipped_risk_is_never_below_the_net_risk(population):
    _, _, risks = population
    assert (risks["clipped"] >= risks["net"]).all()
    assert risks["clipped"][0] == risks["net"][0] == 0


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_too_few_images_select_the_full_network(guarantee):
    few = random_outcomes(0, 10)
    actual = risk_controlled_thresholds(*few, 1.0, guarantee=guarantee)
    assert (exit_of(few.confidence, actual) == 3).all()
    none = risk_controlled_thresholds(*random_outcomes(0, 900), 0.0, guarantee=guarantee)
    np.testing.assert_array_equal(none, actual)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_cost_falls_with_tolerance_and_rises_with_confidence(guarantee):
    images, tolerances = random_outcomes(0, 2000), [0.5, 1, 2, 5, 100]
    actual = risk_controlled_thresholds(*images, tolerances, guarantee=guarantee)
    _, cost = measure(images, actual, COSTS)
    assert (np.diff(cost) <= 0).all()
    assert cost[0] > cost[-1] == COSTS[0]
    stricter = risk_controlled_thresholds(
        *images, tolerances, guarantee=guarantee, confidence_level=0.999
    )
    assert (measure(images, stricter, COSTS)[1] >= cost).all()


def test_binomial_bounds_are_exact():
    number, error, counts = 40, 0.1, np.arange(41)
    upper = binomial_upper_bound(counts, number, error)
    np.testing.assert_allclose(binom.cdf(counts[:-1], number, upper[:-1]), error, rtol=1e-9)
    assert upper[-1] == 1
    assert (np.diff(upper) > 0).all()
    lower = binomial_lower_bound(counts, number, error)
    np.testing.assert_allclose(lower, 1 - upper[::-1])
    assert lower[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance_points": -1}, r"tolerance_points=-1.*0\.\.100"),
        ({"guarantee": "clippd"}, "guarantee.*clippd.*clipped"),
        ({"confidence_level": 95}, "confidence_level=95"),
        ({"family": one_exit_thresholds(4)}, r"family .*\(4, 4\)"),
        ({"family": np.zeros((2, 3))}, r"family .*\(2, 3\).*\[rows, 4\]"),
    ],
)
def test_invalid_arguments_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        risk_controlled_thresholds(*random_outcomes(0, 20), **({"tolerance_points": 1.0} | changes))
