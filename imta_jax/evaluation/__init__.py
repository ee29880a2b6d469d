"""Adaptive evaluation: logits of a split, thresholds, budget curves, calibration, results.

Functions of logits need NumPy and SciPy only, so that logits of other frameworks can be evaluated
without JAX. Functions that run a network are imported on first access.
"""

from imta_jax.evaluation.budget import (
    BudgetCurve,
    Decisions,
    Outcomes,
    budget_curve,
    curve_of_outcomes,
    decisions,
    outcomes,
    rows_with_costs,
)
from imta_jax.evaluation.calibration import (
    calibration_errors,
    expected_calibration_error,
    failure_prediction_auroc,
    reliability,
)
from imta_jax.evaluation.exit_selection import ExitSelection, exits_never_kept, select_exits
from imta_jax.evaluation.methods.comparison import (
    MethodCurve,
    compare_methods,
    compare_outcomes,
)
from imta_jax.evaluation.methods.comparison_record import (
    comparison_record,
    comparison_rows,
    comparison_text,
)
from imta_jax.evaluation.methods.intervals import bootstrap_interval, wilson_interval
from imta_jax.evaluation.methods.monotone_frontier import monotone_frontier
from imta_jax.evaluation.methods.optimized import optimized_thresholds
from imta_jax.evaluation.methods.patience import patience_exits
from imta_jax.evaluation.methods.risk_control import (
    common_thresholds,
    excess_errors,
    risk_controlled_thresholds,
)
from imta_jax.evaluation.methods.temperature import (
    negative_log_likelihood,
    scaled_confidence,
    temperatures,
)
from imta_jax.evaluation.operating_points import (
    OperatingPoint,
    best_within_budget,
    best_within_ms,
    cheapest_within_tolerance,
    operating_points,
    pareto_front,
)
from imta_jax.evaluation.predictions import (
    Predictions,
    anytime_accuracy,
    confidence,
    correct_in_top,
    load_predictions,
    predicted,
    save_predictions,
)
from imta_jax.evaluation.results import dataset_record, exit_rows, read_budget_curve
from imta_jax.evaluation.thresholds import exit_of, geometric_quota, thresholds_for_quota
from imta_jax.runtime.lazy_imports import lazy_imports

# Needs JAX or pandas.
_BY_MODULE = {
    "collect_predictions": "imta_jax.evaluation.collect",
    "compare_exit_rules": "imta_jax.evaluation.rule_comparison",
    "evaluate": "imta_jax.evaluation.run",
    "evaluation_is_finished": "imta_jax.evaluation.run",
    "exit_costs": "imta_jax.models.costs",
    "ExitCosts": "imta_jax.models.costs",
    "read_samples": "imta_jax.evaluation.samples",
    "samples_columns": "imta_jax.evaluation.samples",
    "split_predictions": "imta_jax.evaluation.collect",
    "write_samples": "imta_jax.evaluation.samples",
}

__all__ = [
    "BudgetCurve",
    "Decisions",
    "MethodCurve",
    "OperatingPoint",
    "Outcomes",
    "Predictions",
    "anytime_accuracy",
    "best_within_budget",
    "best_within_ms",
    "bootstrap_interval",
    "budget_curve",
    "calibration_errors",
    "failure_prediction_auroc",
    "cheapest_within_tolerance",
    "common_thresholds",
    "compare_methods",
    "compare_outcomes",
    "comparison_record",
    "comparison_rows",
    "comparison_text",
    "confidence",
    "correct_in_top",
    "curve_of_outcomes",
    "dataset_record",
    "decisions",
    "excess_errors",
    "exit_of",
    "ExitSelection",
    "exits_never_kept",
    "select_exits",
    "exit_rows",
    "expected_calibration_error",
    "geometric_quota",
    "load_predictions",
    "monotone_frontier",
    "negative_log_likelihood",
    "operating_points",
    "optimized_thresholds",
    "outcomes",
    "pareto_front",
    "patience_exits",
    "predicted",
    "read_budget_curve",
    "reliability",
    "risk_controlled_thresholds",
    "rows_with_costs",
    "save_predictions",
    "scaled_confidence",
    "temperatures",
    "thresholds_for_quota",
    "wilson_interval",
    *_BY_MODULE,
]

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
