"""Evaluation of a run's network with int8 weights: thresholds and accuracies for its export."""

from typing import Any

from imta_jax.data import load_dataset
from imta_jax.errors import InputError
from imta_jax.evaluation import OperatingPoint, operating_points, pareto_front
from imta_jax.evaluation.budget import curve_of_outcomes
from imta_jax.evaluation.collect import split_predictions
from imta_jax.evaluation.exit_scores import outcomes_of_rule
from imta_jax.evaluation.results import exit_rows
from imta_jax.inference.finished_run import FinishedRun
from imta_jax.interop.quantization import quantize_classifier


def evaluate_quantized(
    run: FinishedRun,
) -> tuple[tuple[OperatingPoint, ...], list[dict[str, Any]]]:
    """Evaluates the rounded network on the run's dataset, as the run was evaluated.

    Args:
      run: finished.

    Returns:
      Operating points, whose thresholds are chosen on the validation images, and the `exits`
      section of the results.

    Raises:
      ValueError: the dataset is another one than that of the run.
    """
    dataset = load_dataset(run.config.data)
    expected = run.results["dataset"]["examples"]
    counts = {name: len(split) for name, split in dataset.splits.items()}
    if counts != expected:
        raise InputError(
            f"config.data.source={run.config.data.source} has {counts} images; expected "
            f"{expected}, those of the run"
        )
    classifier = quantize_classifier(run.classifier)
    validation, test = (
        split_predictions(run.config, dataset, classifier, split)
        for split in ("validation", "test")
    )
    settings = run.config.evaluation
    curve = curve_of_outcomes(
        outcomes_of_rule(validation, run.exit_rule),
        outcomes_of_rule(test, run.exit_rule),
        run.costs,
        quotas=settings.quotas,
    )
    points = operating_points(curve.rows("mean_macs"), run.costs.macs[-1])
    rows = exit_rows(validation, test, run.costs, settings.calibration_bins)
    return pareto_front(points), rows
