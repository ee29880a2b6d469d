"""The result row of one trained variant and seed: accuracy per exit, budget curve, figure data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from scipy.stats import rankdata, spearmanr

from imta_jax.config import DataConfig, PhaseConfig, RunConfig
from imta_jax.data import Dataset, HostPipeline, eval_batches
from imta_jax.errors import InputError
from imta_jax.evaluation import ExitCosts, Predictions, curve_of_outcomes
from imta_jax.evaluation.exit_scores import fitted_exit_rule, outcomes_of_rule
from imta_jax.evaluation.predictions import confidence
from imta_jax.evaluation.results import exit_rows
from imta_jax.models import MultiExitClassifier
from imta_jax.nn.pixels import normalize
from imta_jax.runtime.metric_rows import read_metric_rows
from imta_jax.studies.gradient_variance import gradient_variance
from imta_jax.training import PhaseOneObjective, metrics
from imta_jax.training.loss_objective import LossObjective
from imta_jax.training.setup import phase_one_objective

# Fields of the budget curve's points that a row keeps.
_BUDGET_FIELDS = ("quota", "mean_macs", "top1", "validation_top1")
# Validation images whose confidence ranks are recorded for Figure 7.
_RANKED_IMAGES = 400
# Images per batch of the gradient variance: the paper's batch size on CIFAR.
_GRADIENT_BATCH = 64


def prediction_results(
    config: RunConfig,
    costs: ExitCosts,
    validation: Predictions,
    test: Predictions,
    *,
    keep_ranks: bool,
) -> dict[str, Any]:
    """Computes the part of a row that follows from a variant's predictions.

    Args:
      config: config of the variant.
      costs: costs of its exits.
      validation: its predictions on the validation images.
      test: its predictions on the test images.
      keep_ranks: whether to keep the confidence ranks in addition to their correlation.

    Returns:
      `exits`, `budget_curve`, `rank_correlation` and `confidence_ranks` of `study.json`.
    """
    settings = config.evaluation
    rule = fitted_exit_rule(settings, validation, costs.macs)
    on_validation, on_test = outcomes_of_rule(validation, rule), outcomes_of_rule(test, rule)
    curve = curve_of_outcomes(on_validation, on_test, costs.macs, quotas=settings.quotas)
    points = [{name: point[name] for name in _BUDGET_FIELDS} for point in curve.rows("mean_macs")]
    by_exit = confidence(validation.logits)
    has_two = len(by_exit) > 1
    return {
        "exits": exit_rows(validation, test, costs, settings.calibration_bins),
        "budget_curve": points,
        "rank_correlation": _rank_correlation(by_exit) if has_two else None,
        "confidence_ranks": _ranks(by_exit) if has_two and keep_ranks else None,
    }


def _rank_correlation(by_exit: Float32[np.ndarray, "E N"]) -> float:
    """Spearman's correlation of the confidences at exits 1 and 2."""
    correlation: Any = spearmanr(by_exit[0], by_exit[1])
    return float(correlation.statistic)


def _ranks(by_exit: Float32[np.ndarray, "E N"]) -> list[list[int]]:
    """Ranks of the first images' confidences at exits 1 and 2; 0 is the least confident."""
    ranked = by_exit[:2, :_RANKED_IMAGES]
    return [(rankdata(values, method="ordinal") - 1).astype(int).tolist() for values in ranked]


def validation_curve(folder: Path, exits: slice) -> list[dict[str, Any]]:
    """Validation top-1 (percent) per epoch of a phase.

    Args:
      folder: folder of the phase, with `metrics.jsonl`.
      exits: the exits to return.
    """
    return [
        {"epoch": line["epoch"], "top1": line["top1_per_exit"][exits]}
        for line in read_metric_rows(folder / "metrics.jsonl")
        if line["split"] == "validation"
    ]


def training_seconds(folder: Path, phase: PhaseConfig) -> float:
    """Time in seconds that the training steps of a phase took, from its metrics."""
    rows = read_metric_rows(folder / "metrics.jsonl")
    train = [row for row in rows if row["split"] == "train"]
    return metrics.training_seconds(train, phase.batch_size)


def gradient_variance_results(
    config: RunConfig, dataset: Dataset, classifier: MultiExitClassifier, images: int
) -> dict[str, Any]:
    """Measures the gradient variance of a trained phase-I network on validation images.

    The gradient is that of the cross-entropy, also for variants with another loss.

    Args:
      config: config of the variant.
      dataset: dataset that it was trained on.
      classifier: network after phase I.
      images: number of images; rounded down to full batches of 64 that the split can fill.

    Returns:
      `stages` [E] and `losses` [E, E], see `GradientVariance`.

    Raises:
      ValueError: the split does not fill one batch.
    """
    batches = list(_normalized_batches(dataset, config.data, images))
    if not batches:
        count = len(dataset.splits["validation"])
        raise InputError(
            f"config.gradient_variance_images must fill a batch of {_GRADIENT_BATCH} images; found "
            f"{images}, with {count} validation images"
        )
    objective = phase_one_objective(config)
    if isinstance(objective, LossObjective):
        objective = cast(PhaseOneObjective, objective.phase)
    variance = gradient_variance(classifier, objective, batches)
    return {"stages": variance.stages.tolist(), "losses": variance.losses.tolist()}


def _normalized_batches(
    dataset: Dataset, config: DataConfig, images: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields full batches of normalized images [64, H, W, C] and labels [64]."""
    batches = eval_batches(
        dataset.splits["validation"],
        dataset.preprocessing,
        _GRADIENT_BATCH,
        pipeline=config.pipeline,
        host=HostPipeline.from_config(config),
    )
    for number, batch in enumerate(batches, start=1):
        if number * _GRADIENT_BATCH > images or not batch.mask.all():
            return
        pixels = normalize(jnp.asarray(batch.images), dataset.mean, dataset.std)
        yield pixels, jnp.asarray(batch.labels)


def cost_rows(costs: ExitCosts) -> list[dict[str, int]]:
    """Costs per exit in the form of `study.json`."""
    names = ("macs", "published_ops", "params")
    columns = {name: getattr(costs, name) for name in names}
    return [
        {"exit": i + 1, **{name: int(column[i]) for name, column in columns.items()}}
        for i in range(len(costs.macs))
    ]
