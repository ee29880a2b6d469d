"""Exit rules: their scores, and equal exits in simulation, engine, stream and export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sample_logits import overconfident_split

from imta_jax.data import PaddedCrop
from imta_jax.errors import InputError
from imta_jax.evaluation import OperatingPoint, exit_of, patience_exits, predicted
from imta_jax.evaluation.exit_scores import exit_rule_record, exit_scores, read_exit_rule
from imta_jax.evaluation.methods.learned_gate import fit_gates, gate_inputs
from imta_jax.inference import AdaptiveClassifier, AdaptiveStream, export_classifier, load_exported
from imta_jax.models import build_classifier
from imta_jax.runtime.registry import EXIT_RULES
from imta_jax.techniques import get_exit_rule
from imta_jax.techniques.exit_rules import check_exit_rule

LOGITS = np.random.default_rng(0).normal(0, 2, (3, 50, 4)).astype(np.float32)
NETWORK = {"preset": "quickstart", "num_exits": 3, "channels": 4, "growth_rate": 2}
NETWORK |= {"growth_factors": (1, 2), "bottleneck_factors": (1, 2)}


def summed_probability(logits, carry, *, factor=1.0):
    total = jax.nn.softmax(logits) + (0 if carry is None else carry)
    return factor * total.max(axis=-1), total


@pytest.fixture(scope="module")
def classifier():
    network = build_classifier(NETWORK, num_classes=4, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))
    network.eval()
    for linear in network.heads.linears:  # spreads the scores, so that rounding decides nothing
        linear.kernel[...] *= 30
    return network


COSTS, LABELS = np.arange(1.0, 4), np.arange(40) % 4
IMAGES = np.random.default_rng(1).normal(size=(40, 16, 16, 1)).astype(np.float32)


def test_confidence_entropy_and_margin_equal_their_formulas():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    ordered = np.sort(p, axis=-1)
    expected = {
        "confidence": ordered[..., -1],
        "entropy": 1 + (p * np.log(p)).sum(-1) / np.log(4),
        "margin": ordered[..., -1] - ordered[..., -2],
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(exit_scores(LOGITS, get_exit_rule(name)), scores, atol=1e-5)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_leaves_where_exits_in_a_row_agree(patience):
    scores = exit_scores(LOGITS, get_exit_rule("patience"))
    exits = exit_of(scores, [patience, patience, -1e8])
    np.testing.assert_array_equal(exits, patience_exits(predicted(LOGITS), patience))


@pytest.mark.parametrize(
    "rule", ["entropy", "margin", "patience", "learned_gate", summed_probability]
)
def test_exits_are_equal_in_simulation_engine_stream_and_export(rule, classifier, tmp_path):
    logits = np.asarray(classifier(IMAGES))
    rule = get_exit_rule(rule).fitted(logits, LABELS, COSTS)
    scores = exit_scores(logits, rule)
    ordered = np.sort(scores, axis=1)
    # Between two scores, so that rounding does not decide.
    thresholds = [float(row[15] + row[25]) / 2 for row in ordered[:-1]] + [-1e8]
    expected = exit_of(scores, thresholds)
    adaptive = AdaptiveClassifier(classifier, thresholds, exit_rule=rule, num_workers=1)
    actual = adaptive.predict(IMAGES)
    np.testing.assert_array_equal(actual.exit, expected)
    np.testing.assert_array_equal(actual.labels, predicted(logits)[expected, np.arange(40)])
    p = np.asarray(jax.nn.softmax(logits)).max(-1)[expected, np.arange(40)]
    np.testing.assert_allclose(actual.confidence, p, atol=1e-5)
    with AdaptiveStream(adaptive) as stream:
        np.testing.assert_array_equal(stream.submit(IMAGES).result().exit, expected)
    point = OperatingPoint(0.8, tuple(map(float, thresholds)), (0.4, 0.3, 0.3), 50.0, 50.0)
    preprocessing = PaddedCrop(padding=0, flip=False)
    export_classifier(
        classifier,
        tmp_path / "export",
        points=[point],
        class_names="abcd",
        mean=(0.0,),
        std=(1.0,),
        preprocessing=preprocessing.evaluation_transform((16, 16, 1), (0.0,), (1.0,)),
        platforms=("cpu",),
        exit_rule=rule,
    )
    exported = load_exported(tmp_path / "export").adaptive(1.0, num_workers=1)
    np.testing.assert_array_equal(exported.predict(IMAGES).exit, expected)


@pytest.mark.parametrize("price", [0.1, 1.0])
def test_a_fitted_gate_leaves_at_even_odds_where_the_gates_do(price):
    logits, labels = overconfident_split(0, 200)
    rule = get_exit_rule("learned_gate", {"price": price})
    with pytest.raises(ValueError, match="gates"):
        exit_scores(logits, rule)
    fitted = rule.fitted(logits, labels, np.arange(1.0, 5))
    inputs = gate_inputs(logits, labels)
    expected = fit_gates(inputs, np.arange(1.0, 5), price).exits(inputs.uncertainty)
    assert 0 < expected.mean() < 3
    actual = exit_of(exit_scores(logits, fitted), [0.0, 0.0, 0.0, -1e8])
    np.testing.assert_array_equal(actual, expected)
    # Another process reads it from JSON; it is not fitted again.
    read = read_exit_rule(json.loads(json.dumps(exit_rule_record(fitted, 4, 3))))
    assert read == fitted == read.fitted(logits[:, :9], labels[:9], np.arange(1.0, 5))


def test_export_has_rule_programs_and_a_new_version_only_with_another_rule(classifier, tmp_path):
    point = OperatingPoint(0.8, (0.5, 0.5, 0.0), (0.4, 0.3, 0.3), 50.0, 50.0)
    transform = PaddedCrop(padding=0, flip=False).evaluation_transform((16, 16, 1), (0.0,), (1.0,))
    arguments = {"points": [point], "class_names": "abcd", "mean": (0.0,), "std": (1.0,)}
    arguments |= {"preprocessing": transform, "platforms": ("cpu",)}
    export_classifier(classifier, tmp_path / "plain", **arguments)
    export_classifier(classifier, tmp_path / "margin", **arguments, exit_rule="margin")
    manifests = [
        json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("plain", "margin")
    ]
    assert [m["format_version"] for m in manifests] == [2, 3]
    assert ["exit_rule" in m for m in manifests] == [False, True]
    (tmp_path / "margin" / "exit_rule_1.stablehlo").unlink()
    with pytest.raises(ValueError, match=r"exit_rule_1\.stablehlo"):
        load_exported(tmp_path / "margin")


@pytest.mark.parametrize(
    "rule, message",
    [
        (lambda logits: logits, r"shape \(1,\); found \(1, 4\)"),
        (lambda logits, carry: logits[:, 0], r"must return \(score, carry\)"),
        (lambda logits, carry: (logits[:, 0], jnp.zeros(3)), r"first axis.*size 1; found \(3,\)"),
        (lambda logits: logits.no_such, r"at exit 1.*AttributeError"),
        (lambda logits: [][0 if logits.any() else 1], r"at exit 1.*Tracer.*test_exit_rules\.py"),
        (lambda logits: 1 // 0, r"at exit 1.*ZeroDivisionError.*test_exit_rules\.py"),
    ],
)
def test_rules_of_another_shape_are_rejected(rule, message):
    with pytest.raises(ValueError, match=message):
        check_exit_rule(get_exit_rule(rule), 2, 4)


def test_scores_must_be_finite_and_below_the_threshold_of_an_unused_exit():
    with pytest.raises(ValueError, match=r"exit 1 for image 0.*1e\+08"):
        exit_scores(LOGITS, get_exit_rule(lambda logits: logits[:, 0] * 0 + 2e8))


def test_unknown_rules_and_options_are_named():
    with pytest.raises(ValueError, match=r"exit_rule 'entropi'.*first: entropy"):
        get_exit_rule("entropi")
    with pytest.raises(ValueError, match=r"'facter'.*first: factor"):
        get_exit_rule(summed_probability, {"facter": 1})


def test_results_record_a_rule_other_than_the_confidence():
    assert exit_rule_record(get_exit_rule("confidence"), 2, 4) == {}
    record = exit_rule_record(get_exit_rule("entropy"), 2, 4)
    assert read_exit_rule(record) == get_exit_rule("entropy")
    assert read_exit_rule({}) == get_exit_rule("confidence")


def test_a_rule_whose_code_changed_since_the_evaluation_is_rejected(monkeypatch):
    def agreement(logits, carry):
        label = logits.argmax(axis=-1)
        agrees = 0.0 if carry is None else 1.0 * (label == carry)
        return jax.nn.softmax(logits).max(axis=-1) + agrees, label

    monkeypatch.setitem(EXIT_RULES._components, "agreement", agreement)
    record = json.loads(json.dumps(exit_rule_record(get_exit_rule("agreement"), 3, 4)))
    record["exit_rule"]["registered_by"] = None  # this function cannot be imported
    assert read_exit_rule(record).function is agreement
    monkeypatch.setitem(EXIT_RULES._components, "agreement", lambda logits: logits.max(axis=-1))
    with pytest.raises(InputError, match=r"config\.evaluation\.exit_rule 'agreement'.*scores"):
        read_exit_rule(record)
