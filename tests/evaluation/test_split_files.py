"""Files of logits or scores, and the comparison of methods on scores."""

import json

import numpy as np
import pytest
from sample_logits import COSTS, overconfident_split

from imta_jax.evaluation import Outcomes, command, compare_methods, compare_outcomes, outcomes
from imta_jax.evaluation.split_files import load_split

COMMON = {"sweep", "envelope", "optimised", "expectation", "clipped", "net"}
LOGITS = [overconfident_split(seed, 300) for seed in (0, 1)]
SCORES = [outcomes(split) for split in LOGITS]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("scores")
    paths = [str(folder / f"{name}.npz") for name in ("validation", "test")]
    for path, (scores, correct) in zip(paths, SCORES, strict=True):
        np.savez(path, scores=scores.astype(np.float64), correct=correct.astype(np.uint8))
    return paths


def test_confidences_as_scores_give_the_points_of_their_logits(files):
    by_logits = compare_methods(*LOGITS, COSTS, [0.3, 0.6])
    by_scores = compare_outcomes(*map(load_split, files), COSTS, [0.3, 0.6])
    assert by_scores.keys() == COMMON
    for method, curve in by_scores.items():
        np.testing.assert_array_equal(curve.thresholds, by_logits[method].thresholds)
        np.testing.assert_allclose(curve.gain_interval, by_logits[method].gain_interval, 1e-5)


def test_exits_do_not_depend_on_the_scale_of_the_scores():
    rescaled = [Outcomes(100 * scores - 60, correct) for scores, correct in SCORES]
    actual = compare_outcomes(*rescaled, COSTS, [0.3, 0.6])
    assert actual.keys() == COMMON - {"expectation", "clipped", "net"}
    expected = compare_outcomes(*SCORES, COSTS, [0.3, 0.6])
    for method, curve in actual.items():
        np.testing.assert_array_equal(curve.exit_fractions, expected[method].exit_fractions)


def test_command_prints_code_that_applies_thresholds_to_scores(files, tmp_path, capsys):
    options = ["--costs=10,25,45,70", "--budgets=0.5", f"--out={tmp_path}/out.json"]
    command.main([*files, *options, "--format=numpy"])
    scope = {}
    exec(capsys.readouterr().out, scope)
    left = np.array([scope["leaves"](i, scores) for i, scores in enumerate(SCORES[1].confidence)])
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    (point,) = (point for point in points if point["method"] == "sweep")
    fractions = np.bincount(left.argmax(axis=0), minlength=4) / left.shape[1]
    np.testing.assert_allclose(fractions, point["exit_fractions"])


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"scores": SCORES[0].confidence}, "correct"),
        ({**SCORES[0]._asdict(), "logits": LOGITS[0].logits, "scores": 1}, "logits"),
        ({"scores": SCORES[0].confidence, "correct": SCORES[0].correct[:, :9]}, r"\(4, 9\)"),
        ({"scores": SCORES[0].confidence * np.nan, "correct": SCORES[0].correct}, "exit 1"),
        ({"scores": SCORES[0].confidence.astype(str), "correct": SCORES[0].correct}, "<U"),
        ({"scores": np.array([{}]), "correct": SCORES[0].correct}, "scores"),
    ],
)
def test_invalid_scores_raise(tmp_path, arrays, named):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz.*{named}"):
        load_split(tmp_path / "a.npz")


@pytest.mark.parametrize("options", [[], ["--format=numpy", "--method=temperature"]])
def test_scores_and_logits_do_not_mix(files, tmp_path, capsys, options):
    path = tmp_path / "logits.npz"
    np.savez(path, logits=LOGITS[1].logits, labels=LOGITS[1].labels)
    test = files[1] if options else str(path)
    with pytest.raises(SystemExit):
        command.main([files[0], test, "--costs=10,25,45,70", "--budgets=0.5", *options])
    error = capsys.readouterr().err
    assert ("temperature" if options else "validation.npz has scores") in error
