"""Adaptive evaluation: costs, logits of a split, thresholds, budget curves, records, results."""

from imta_jax.evaluation.adaptive import (
    BudgetCurve,
    Decisions,
    Outcomes,
    budget_curve,
    curve_of_outcomes,
    decisions,
    operating_point,
    outcomes,
)
from imta_jax.evaluation.calibration import (
    calibration_errors,
    expected_calibration_error,
    reliability,
)
from imta_jax.evaluation.collect import collect_predictions
from imta_jax.evaluation.costs import ExitCosts, exit_costs
from imta_jax.evaluation.predictions import (
    Predictions,
    anytime_accuracy,
    confidence,
    correct_in_top,
    load_predictions,
    predicted,
    save_predictions,
)
from imta_jax.evaluation.records import read_samples, write_samples
from imta_jax.evaluation.run import check_evaluation_config, evaluate, evaluation_is_finished
from imta_jax.evaluation.thresholds import exit_of, geometric_quota, thresholds_for_quota

__all__ = [
    "BudgetCurve",
    "Decisions",
    "ExitCosts",
    "Outcomes",
    "Predictions",
    "anytime_accuracy",
    "budget_curve",
    "calibration_errors",
    "check_evaluation_config",
    "collect_predictions",
    "confidence",
    "correct_in_top",
    "curve_of_outcomes",
    "decisions",
    "evaluate",
    "evaluation_is_finished",
    "exit_costs",
    "exit_of",
    "expected_calibration_error",
    "geometric_quota",
    "load_predictions",
    "operating_point",
    "outcomes",
    "predicted",
    "read_samples",
    "reliability",
    "save_predictions",
    "thresholds_for_quota",
    "write_samples",
]
