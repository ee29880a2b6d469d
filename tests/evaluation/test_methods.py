"""Ways to choose where images leave: guarantees simulated, optima by brute force, properties."""

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from imta_jax.evaluation import command
from imta_jax.evaluation.budget import Outcomes, curve_of_outcomes
from imta_jax.evaluation.methods import risk_control
from imta_jax.evaluation.methods.comparison import MethodCurve, compare_methods
from imta_jax.evaluation.methods.intervals import bootstrap_interval, wilson_interval
from imta_jax.evaluation.methods.monotone_frontier import monotone_envelope
from imta_jax.evaluation.methods.optimized import one_exit_thresholds, optimised_thresholds
from imta_jax.evaluation.methods.patience import patience_exits
from imta_jax.evaluation.methods.temperature import (
    negative_log_likelihood,
    scaled_confidence,
    temperatures,
)
from imta_jax.evaluation.predictions import Predictions, confidence, predicted
from imta_jax.evaluation.thresholds import exit_of

COSTS = np.array([10, 25, 45, 70])
BUDGETS = (0.2, 0.4, 0.6, 1.0)
METHODS = ["sweep", "envelope", "temperature", "optimised", "patience", *risk_control.GUARANTEES]


def split(seed: int, num_images: int = 600, num_exits: int = 4, num_classes: int = 7):
    """Logits that favour the label more at each later exit, and are too sure of themselves."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images).astype(np.int32)
    logits = generator.normal(size=(num_exits, num_images, num_classes)).astype(np.float32)
    easy = generator.normal(size=num_images) + np.linspace(0.5, 2.5, num_exits)[:, None]
    logits[:, np.arange(num_images), labels] += easy.astype(np.float32)
    return Predictions(logits * np.float32(2), labels)


def outcomes(seed: int, num_images: int, num_exits: int = 4, ties: bool = True) -> Outcomes:
    """Confidences that know something of what is right; of two digits, so that some are tied."""
    generator = np.random.default_rng(seed)
    easy = generator.normal(size=num_images) + np.linspace(0, 1, num_exits)[:, None]
    sure = easy + generator.normal(size=(num_exits, num_images))
    correct = easy + generator.normal(size=(num_exits, num_images)) > 0
    sure = 1 / (1 + np.exp(-sure))
    return Outcomes((sure.round(2) if ties else sure).astype(np.float32), correct)


def measured(split: Outcomes, thresholds, costs) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and mean cost [B]."""
    exits = exit_of(split.confidence, thresholds)
    right = split.correct[exits, np.arange(exits.shape[-1])[None, :]]
    return right.sum(axis=-1), np.asarray(costs)[exits].mean(axis=-1)


@pytest.fixture(scope="module")
def curves() -> dict[str, MethodCurve]:
    return compare_methods(split(0), split(1), COSTS, BUDGETS)


# ----- optimised thresholds


def best_by_force(split: Outcomes, costs, budget: float) -> int:
    """The most right answers of any thresholds whose mean cost is within the budget."""
    values = [np.r_[np.unique(c), 1e8] for c in split.confidence[:-1]]
    every = np.array([(*t, -1e8) for t in itertools.product(*values)], np.float32)
    right, cost = measured(split, every, costs)
    return int(right[cost <= budget * (1 + 1e-12)].max())


@pytest.mark.parametrize("num_exits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_up_to_three_exits_the_optimum_is_exact(num_exits, seed):
    small, costs = outcomes(seed, 25, num_exits), COSTS[:num_exits]
    budgets = np.linspace(costs[0], costs[-1], 5)
    right, cost = measured(small, optimised_thresholds(*small, costs, budgets), costs)
    assert right.tolist() == [best_by_force(small, costs, b) for b in budgets]
    assert (cost <= budgets * (1 + 1e-9)).all()


def test_with_more_exits_the_optimum_is_nearly_always_found():
    missed = []
    for seed in range(12):
        small, budgets = outcomes(seed, 12), np.linspace(COSTS[0], COSTS[-1], 5)
        right, _ = measured(small, optimised_thresholds(*small, COSTS, budgets), COSTS)
        missed += list(np.array([best_by_force(small, COSTS, b) for b in budgets]) - right)
    assert min(missed) == 0 and max(missed) <= 1
    assert np.mean(np.array(missed) > 0) <= 0.1


@pytest.mark.parametrize("levels", [1, 16, 64])
def test_optimised_is_within_the_budget_and_never_worse_than_the_sweep(levels):
    validation = outcomes(0, 700)
    curve = curve_of_outcomes(validation, validation, COSTS)
    budgets = np.random.default_rng(0).uniform(11, 70, 20)
    found = optimised_thresholds(*validation, COSTS, budgets, levels=levels)
    right, cost = measured(validation, found, COSTS)
    assert (cost <= budgets).all()
    for budget, accuracy in zip(budgets, right / 7, strict=True):
        affordable = curve.validation_accuracy[curve.validation_cost <= budget]
        assert accuracy >= affordable.max(initial=0) - 1e-9
    assert (np.diff(right[np.argsort(budgets)]) >= 0).all()


def test_optimised_is_never_worse_than_what_it_starts_from():
    validation = outcomes(3, 300, 5)
    costs = np.arange(1, 6) / 3
    starts = np.sort(np.random.default_rng(1).uniform(0.1, 1, (30, 5)), axis=1)[:, ::-1]
    right, cost = measured(validation, starts, costs)
    better, spent = measured(
        validation, optimised_thresholds(*validation, costs, cost, starts=starts), costs
    )
    assert (better >= right).all() and (spent <= cost * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [9.0]}, r"budget of 9 .* first exit alone costs, 10"),
        ({"budgets": []}, "expected a sequence"),
        ({"levels": 0}, "0 levels"),
        ({"starts": np.zeros((2, 3))}, r"expected thresholds \[S, 4\]"),
        ({"costs": COSTS[:2]}, "both belong to the same network"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(changes, message):
    arguments = {"costs": COSTS, "budgets": [30.0]} | changes
    with pytest.raises(ValueError, match=message):
        optimised_thresholds(*outcomes(0, 20), **arguments)


# ----- envelope


def test_the_envelope_rises_and_looks_at_no_test_image():
    curve = curve_of_outcomes(outcomes(0, 300), outcomes(1, 300), COSTS)
    assert (np.diff(curve.validation_accuracy) < 0).any()  # else there is nothing to do
    envelope = monotone_envelope(curve)
    assert (np.diff(envelope.validation_accuracy) >= 0).all()
    assert (np.diff(envelope.validation_cost) >= 0).all()
    for cost, best in zip(
        np.sort(curve.validation_cost), envelope.validation_accuracy, strict=True
    ):
        assert best == curve.validation_accuracy[curve.validation_cost <= cost].max()
    other = monotone_envelope(dataclasses.replace(curve, accuracy=-curve.accuracy))
    np.testing.assert_array_equal(other.accuracy, -envelope.accuracy)


# ----- temperature


def test_temperatures_minimise_the_likelihood_on_a_fine_grid():
    logits, labels = split(0)
    found = temperatures(logits, labels)
    best = negative_log_likelihood(logits, labels, found)
    for factor in np.exp(np.linspace(-3, 3, 121)):
        assert (best <= negative_log_likelihood(logits, labels, found * factor) + 1e-6).all()
    nearby = negative_log_likelihood(logits, labels, found * 1.02)
    assert (best < nearby).all() and (found > 1).all()  # these networks are too sure


def test_likelihood_is_that_of_the_softmax():
    logits, labels = split(0, 50)
    heat = np.array([0.5, 1.0, 2.0, 4.0])
    powers = np.exp(logits.astype(np.float64) / heat[:, None, None])
    of_label = powers[:, np.arange(50), labels] / powers.sum(axis=-1)
    np.testing.assert_allclose(
        negative_log_likelihood(logits, labels, heat), -np.log(of_label).mean(axis=1), rtol=1e-5
    )
    expected = (powers / powers.sum(axis=-1, keepdims=True)).max(axis=-1)
    np.testing.assert_allclose(scaled_confidence(logits, heat), expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled_confidence(logits, np.ones(4)), confidence(logits))


def test_a_temperature_is_found_again_and_leaves_predictions_alone():
    logits, labels = split(0)
    found = temperatures(logits, labels)
    np.testing.assert_allclose(temperatures(logits * np.float32(3), labels), 3 * found, rtol=1e-3)
    scaled = logits / found.astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(predicted(scaled), predicted(logits))
    np.testing.assert_allclose(temperatures(scaled, labels), 1, rtol=1e-3)


def test_temperatures_stay_finite_where_there_is_no_best_one():
    logits, labels = split(0, 30)
    never_wrong = np.eye(7, dtype=np.float32)[labels][None]
    assert 0.01 <= temperatures(never_wrong, labels)[0] < 0.02
    assert 50 < temperatures(-never_wrong, labels)[0] <= 100
    flat = temperatures(np.zeros_like(logits), labels)
    assert ((flat >= 0.01) & (flat <= 100)).all()


@pytest.mark.parametrize("heat", [[1.0, 1.0], [0.0, 1, 1, 1], [np.nan, 1, 1, 1]])
def test_unusable_temperatures_are_refused(heat):
    with pytest.raises(ValueError, match="one positive number per exit"):
        scaled_confidence(split(0, 5).logits, heat)


# ----- risk control

TOLERANCE = 5.0


@pytest.fixture(scope="module")
def population():
    """Images enough to know the risk of every row of a fine family, the family, its risks."""
    images = outcomes(0, 20_000, ties=False)
    family = risk_control.common_thresholds(4, 400)
    excess = risk_control.excess_errors(images.correct, exit_of(images.confidence, family))
    clipped = 100 * (excess == 1).mean(axis=1)
    return images, family, {"expectation": clipped, "clipped": clipped, "net": 100 * excess.mean(1)}


def chosen_risks(population, guarantee: str, level: float = 0.95) -> np.ndarray:
    """The true risk, in points, of what each of 400 validation sets makes one choose."""
    images, family, risks = population
    generator, found = np.random.default_rng(1), []
    for _ in range(400):
        some = generator.integers(0, images.correct.shape[1], 500)
        thresholds = risk_control.risk_controlled_thresholds(
            images.confidence[:, some],
            images.correct[:, some],
            TOLERANCE,
            guarantee=guarantee,
            confidence_level=level,
            family=family,
        )
        found.append(risks[guarantee][(family == thresholds).all(axis=1).argmax()])
    return np.array(found)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_a_bounded_risk_is_kept_as_often_as_promised(population, level):
    allowed = 1 - level
    slack = 3 * np.sqrt(allowed * level / 400)  # three deviations of 400 validation sets
    clipped = np.mean(chosen_risks(population, "clipped", level) > TOLERANCE)
    assert clipped <= allowed + slack
    # Being exact it uses up most of what it is allowed; a needlessly loose bound would show here.
    assert clipped >= allowed / 3
    net = chosen_risks(population, "net", level)
    assert np.mean(net > TOLERANCE) <= allowed + slack and net.mean() > TOLERANCE / 4


def test_conformal_risk_is_kept_on_average(population):
    found = chosen_risks(population, "expectation")
    assert 0.9 * TOLERANCE <= found.mean() <= TOLERANCE + 3 * found.std() / np.sqrt(len(found))


def test_a_clipped_bound_bounds_the_net_risk(population):
    _, _, risks = population
    assert (risks["clipped"] >= risks["net"]).all()
    assert risks["clipped"][0] == risks["net"][0] == 0


@pytest.mark.parametrize("guarantee", risk_control.GUARANTEES)
def test_without_evidence_the_full_network_is_the_answer(guarantee):
    few = outcomes(0, 10)
    found = risk_control.risk_controlled_thresholds(*few, 1.0, guarantee=guarantee)
    assert (exit_of(few.confidence, found) == 3).all()
    none = risk_control.risk_controlled_thresholds(*outcomes(0, 900), 0.0, guarantee=guarantee)
    np.testing.assert_array_equal(none, found)


@pytest.mark.parametrize("guarantee", risk_control.GUARANTEES)
def test_more_tolerance_never_costs_more(guarantee):
    images = outcomes(0, 2000)
    found = risk_control.risk_controlled_thresholds(
        *images, [0.5, 1, 2, 5, 100], guarantee=guarantee
    )
    _, cost = measured(images, found, COSTS)
    assert (np.diff(cost) <= 0).all() and cost[0] > cost[-1] == COSTS[0]
    surer = risk_control.risk_controlled_thresholds(
        *images, [0.5, 1, 2, 5, 100], guarantee=guarantee, confidence_level=0.999
    )
    assert (measured(images, surer, COSTS)[1] >= cost).all()


def test_binomial_bounds_are_exact():
    number, error = 40, 0.1
    share = risk_control.binomial_upper_bound(np.arange(number + 1), number, error)
    tail = [
        sum(
            float(np.prod(np.arange(number - j + 1, number + 1) / np.arange(1, j + 1)))
            * p**j
            * (1 - p) ** (number - j)
            for j in range(k + 1)
        )
        for k, p in enumerate(share[:-1])
    ]
    np.testing.assert_allclose(tail, error, rtol=1e-9)
    assert share[-1] == 1 and (np.diff(share) > 0).all()
    low = risk_control.binomial_lower_bound(np.arange(number + 1), number, error)
    np.testing.assert_allclose(low, 1 - share[::-1])
    assert low[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance_points": -1}, "expected 0 to 100"),
        ({"guarantee": "clippd"}, "valid, the closest first: clipped"),
        ({"confidence_level": 95}, "expected 0 to 1"),
        ({"family": one_exit_thresholds(4)}, "begin with the strictest"),
        ({"family": np.zeros((2, 3))}, r"expected thresholds \[rows, 4\]"),
    ],
)
def test_unusable_guarantees_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        risk_control.risk_controlled_thresholds(
            *outcomes(0, 20), **({"tolerance_points": 1.0} | changes)
        )


# ----- patience


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
def test_patience_is_the_rule_in_words(patience):
    classes = np.random.default_rng(0).integers(0, 2, (4, 200))
    slow = [
        next(
            (i for i in range(3) if i + 1 >= patience and len({*c[i + 1 - patience : i + 1]}) == 1),
            3,
        )
        for c in classes.T.tolist()
    ]
    np.testing.assert_array_equal(patience_exits(classes, patience), slow)


@pytest.mark.parametrize("patience", [0, 5])
def test_patience_beyond_the_exits_is_refused(patience):
    with pytest.raises(ValueError, match="expected 1 to 4"):
        patience_exits(np.zeros((4, 3), int), patience)
    with pytest.raises(ValueError, match="expected integers"):
        patience_exits(np.zeros((4, 3)), 1)


# ----- intervals


def test_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    right = generator.random((400, 300)) < 0.9
    low, high = wilson_interval(right.mean(axis=1), 300).T
    assert 0.92 <= np.mean((low <= 0.9) & (high >= 0.9)) <= 0.98
    shifts = generator.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(400, 300))
    ends = [bootstrap_interval(s[None], resamples=300, seed=i)[0] for i, s in enumerate(shifts)]
    low, high = np.array(ends).T
    assert 0.91 <= np.mean((low <= 0.1) & (high >= 0.1)) <= 0.98


def test_bootstrap_is_that_of_redrawn_images():
    values = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    ends = bootstrap_interval(values, resamples=4000)
    expected = values.mean(axis=1)[:, None] + 1.96 * values.std(axis=1)[:, None] / 10 * [-1, 1]
    np.testing.assert_allclose(ends, expected, atol=0.02)
    np.testing.assert_array_equal(ends, bootstrap_interval(values, resamples=4000))
    np.testing.assert_array_equal(bootstrap_interval(np.ones((1, 9))), [[1, 1]])


def test_wilson_ends_stay_in_range():
    ends = wilson_interval(np.array([0.0, 0.5, 1.0]), 10)
    assert ends[0, 0] == 0 < ends[0, 1] and ends[2, 0] < 1 == ends[2, 1]
    np.testing.assert_allclose(ends[1], [0.2366, 0.7634], atol=1e-4)  # Wilson's formula by hand
    with pytest.raises(ValueError, match="of at least one"):
        wilson_interval(0.5, 0)


# ----- the comparison


def test_every_method_places_every_image(curves):
    assert list(curves) == METHODS
    for curve in curves.values():
        np.testing.assert_allclose(curve.exit_fractions.sum(axis=1), 1)
        np.testing.assert_allclose(curve.exit_fractions @ COSTS, curve.mean_cost)
        low, high = curve.accuracy_interval.T
        assert ((low <= curve.accuracy) & (curve.accuracy <= high)).all()
        assert (curve.gain_interval[:, 0] <= curve.gain_interval[:, 1]).all()


def test_budgets_are_kept_on_validation_images(curves):
    for name in ("sweep", "envelope", "temperature", "optimised"):
        assert [s["budget"] for s in curves[name].settings] == list(BUDGETS)
        assert (curves[name].validation_cost <= 70 * np.array(BUDGETS) * (1 + 1e-9)).all()
    best, envelope, sweep = (
        curves[name].validation_accuracy for name in ("optimised", "envelope", "sweep")
    )
    assert (best >= envelope).all() and (envelope >= sweep).all()


def test_thresholds_of_a_point_give_its_numbers(curves):
    test = split(1)
    for name, curve in curves.items():
        if curve.thresholds is None:
            continue
        heat = np.ones(4) if curve.temperatures is None else curve.temperatures
        seen = Outcomes(scaled_confidence(test.logits, heat), predicted(test.logits) == test.labels)
        right, cost = measured(seen, curve.thresholds, COSTS)
        np.testing.assert_allclose(right / 6, curve.accuracy, err_msg=name)
        np.testing.assert_allclose(cost, curve.mean_cost)


def test_the_sweep_gains_nothing_over_itself(curves):
    np.testing.assert_allclose(curves["sweep"].gain, 0, atol=1e-9)
    np.testing.assert_allclose(curves["sweep"].gain_interval, 0, atol=1e-4)
    for curve in curves.values():  # all at one end of the costs is the sweep's limit too
        ends = np.isin(curve.validation_cost, COSTS[[0, -1]])
        np.testing.assert_allclose(curve.gain[ends], 0, atol=1e-4)


def test_test_images_choose_nothing(curves):
    other = compare_methods(split(0), split(2, 300), COSTS, BUDGETS)
    for name, curve in curves.items():
        np.testing.assert_array_equal(other[name].thresholds, curve.thresholds)
        np.testing.assert_array_equal(other[name].validation_cost, curve.validation_cost)


@pytest.mark.parametrize("num_exits", [1, 2])
def test_networks_of_few_exits_are_compared(num_exits):
    pair = (split(seed, 40, num_exits) for seed in (0, 1))
    curves = compare_methods(*pair, COSTS[:num_exits], [1.0])
    assert all(np.isfinite(curve.gain_interval).all() for curve in curves.values())


@pytest.mark.parametrize(
    ("test", "budgets", "message"),
    [
        (split(1), [0.1], r"from 0\.1429 \(all leave at the first exit\) to 1"),
        (split(1), [30], "fractions of the last exit's cost"),
        (split(1, num_exits=3), [0.5], "exits and classes of the same network"),
        (split(1, num_classes=6), [0.5], "exits and classes of the same network"),
    ],
)
def test_splits_and_budgets_that_do_not_fit_are_refused(test, budgets, message):
    with pytest.raises(ValueError, match=message):
        compare_methods(split(0), test, COSTS, budgets)


# ----- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Logits as another framework may leave them: float64 and int64."""
    folder = tmp_path_factory.mktemp("logits")
    for seed, name in enumerate(("validation", "test")):
        logits, labels = split(seed, 100)
        np.savez(folder / f"{name}.npz", logits=logits.astype(float), labels=labels.astype(int))
    return [str(folder / f"{name}.npz") for name in ("validation", "test")]


def test_the_command_prints_and_writes_and_starts_no_jax(files, tmp_path):
    out = tmp_path / "found.json"
    program = (
        "import sys, runpy; runpy.run_module('imta_jax.evaluation', run_name='__main__');"
        "assert not {'jax', 'tensorflow', 'pandas'} & set(sys.modules)"
    )
    arguments = [*files, "--costs=10,25,45,70", "--budgets=0.3,0.5", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["full_cost"] == 70 and record["images"] == {"validation": 100, "test": 100}
    assert {row["method"] for row in record["points"]} == set(METHODS)
    for row in record["points"]:
        assert row["asked"] in done.stdout and f"{row['top1']:.2f}" in done.stdout


def test_the_command_finds_budgets_by_itself(files, capsys):
    command.main([*files, "--costs=10,25,45,70"])
    assert "budget 15%" in (text := capsys.readouterr().out) and "budget 10%" not in text


def test_too_few_validation_images_are_refused_where_nothing_could_be_certified(
    files, tmp_path, capsys
):
    """The least number is the least at which a split without errors certifies anything."""
    for number in (58, 59):
        right = np.ones((2, number), bool)
        found = risk_control.risk_controlled_thresholds(
            np.full((2, number), 0.9, np.float32), right, [5.0], guarantee="clipped"
        )
        certified = found[0, 0] < 0.9
        assert certified == (number == 59)
        logits, labels = split(0, number)
        np.savez(tmp_path / "few.npz", logits=logits, labels=labels)
        arguments = [f"{tmp_path}/few.npz", files[1], "--costs=1,2,3,4", "--budgets=0.5"]
        if certified:
            command.main(arguments)
            continue
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert "58 validation images; expected at least 59" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        ("nowhere.npz", ["--costs=1,2,3,4"], "no file nowhere.npz; expected an .npz"),
        (None, ["--costs=1,2,three,4"], "--costs: could not convert string to float: 'three'"),
        (None, ["--costs=1,2,3"], "do both belong to the same network?"),
        (None, ["--costs=4,3,2,1"], "--costs: 4, 3, 2, 1 do not increase strictly"),
        (None, ["--costs=5,5,5,5"], "--costs: 5, 5, 5, 5 do not increase strictly"),
        (None, ["--costs=0,1,2,nan"], "0, 1, 2, nan do not increase strictly from above 0"),
        (None, ["--costs=1,2,3,4", "--budgets=50"], "fractions of the last exit's cost"),
    ],
)
def test_what_a_user_gets_wrong_is_told_without_a_traceback(files, capsys, first, options, message):
    with pytest.raises(SystemExit) as exit_:
        command.main([first or files[0], files[1], *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
