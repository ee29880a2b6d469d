"""Scores of an exit rule on saved logits, from which thresholds are chosen. Needs JAX."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Num

from imta_jax.config import EvaluationConfig
from imta_jax.errors import InputError
from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.predictions import (
    Predictions,
    checked_predictions,
    confidence,
    predicted,
)
from imta_jax.evaluation.thresholds import NEVER_LEAVE
from imta_jax.runtime.registry import EXIT_RULES
from imta_jax.techniques.exit_rules import DEFAULT_EXIT_RULE, ExitRule, get_exit_rule

_IMAGES_PER_CALL = 4096
_EXAMPLES, _TOLERANCE = 8, 2e-3


def exit_scores(logits: Float32[np.ndarray, "E N K"], rule: ExitRule) -> Float32[np.ndarray, "E N"]:
    """The score of each image at each exit.

    Args:
      logits: logits of all exits.
      rule: the confidence is computed with NumPy, as for logits of other frameworks.

    Raises:
      ValueError: a score is not finite or not below 1e8, the threshold of an exit without images.
    """
    if rule.is_default:
        return confidence(logits)
    step = jax.jit(rule)
    chunks = []
    for start in range(0, logits.shape[1], _IMAGES_PER_CALL):
        carry, scores = None, []
        for exit_logits in logits[:, start : start + _IMAGES_PER_CALL]:
            score, carry = step(exit_logits, carry)
            scores.append(score)
        chunks.append(np.stack(jax.device_get(scores)))
    scores = np.concatenate(chunks, axis=1)
    invalid = np.argwhere(~(np.abs(scores) < NEVER_LEAVE))
    if len(invalid):
        i, n = invalid[0]
        raise InputError(
            f"exit rule {rule.name!r} gives the score {scores[i, n]} at exit {i + 1} for image {n};"
            f" expected finite numbers below {NEVER_LEAVE:g}"
        )
    return scores


def outcomes_of_rule(predictions: Predictions, rule: ExitRule) -> Outcomes:
    """Like `budget.outcomes`, with the scores of a rule instead of confidences."""
    logits, labels = checked_predictions(predictions, "predictions")
    return Outcomes(exit_scores(logits, rule), predicted(logits) == labels[None, :])


def fitted_exit_rule(
    settings: EvaluationConfig, validation: Predictions, costs: Num[np.ndarray, " E"]
) -> ExitRule:
    """The rule of a run, fitted on validation images if it has parameters.

    Raises:
      InputError: an unknown rule or option.
    """
    field = "config.evaluation.exit_rule"
    rule = get_exit_rule(settings.exit_rule, settings.exit_rule_options, field)
    return rule.fitted(*validation, costs)


def exit_rule_record(rule: ExitRule, num_exits: int, num_classes: int) -> dict[str, Any]:
    """The entry `exit_rule` of `results.json`; empty for the confidence.

    That of a custom rule has the scores of fixed logits.
    """
    if rule.is_default:
        return {}
    source = EXIT_RULES.source(rule.name)
    record = {"name": rule.name, "options": dict(rule.options), "registered_by": source}
    if not EXIT_RULES.is_built_in(rule.name):
        scores = _example_scores(rule, num_exits, num_classes)
        record["examples"] = {"num_classes": num_classes, "scores": scores.tolist()}
    return {"exit_rule": record}


def _example_scores(rule: ExitRule, num_exits: int, num_classes: int) -> Float32[np.ndarray, "E N"]:
    logits = np.random.default_rng(0).normal(size=(num_exits, _EXAMPLES, num_classes))
    return exit_scores((3 * logits).astype(np.float32), rule)


def read_exit_rule(results: Mapping[str, Any]) -> ExitRule:
    """The rule that `exit_rule_record` described.

    Args:
      results: content of `results.json`.

    Raises:
      InputError: its module does not register it any more, or its code computes other scores.
      MissingPackageError: its module cannot be imported.
    """
    record = results.get("exit_rule", {"name": DEFAULT_EXIT_RULE})
    field = "config.evaluation.exit_rule"
    if source := record.get("registered_by"):
        EXIT_RULES.restore_source(record["name"], source, field)
    rule = get_exit_rule(record["name"], record.get("options"), field)
    if examples := record.get("examples"):
        _check_examples(rule, examples, f"{field} {rule.name!r}")
    return rule


def _check_examples(rule: ExitRule, examples: Mapping[str, Any], label: str) -> None:
    expected = np.array(examples["scores"])
    actual = _example_scores(rule, len(expected), examples["num_classes"])
    difference = np.abs(actual - expected).max()
    tolerance = _TOLERANCE * max(1.0, np.abs(expected).max())
    if difference > tolerance:
        raise InputError(
            f"the code of {label} computes other scores than when results.json was written:"
            f" scores of fixed logits differ by up to {difference:.3g}, expected at most"
            f" {tolerance:.3g}; use the code of that time, or delete results.json and run"
            " --mode=evaluate"
        )
