"""From a trained arm to its row: accuracy per exit, budget curve, and what the figures need."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata, spearmanr

from imta_jax.data import Dataset, HostPipeline, Split, eval_batches
from imta_jax.evaluation import ExitCosts, Predictions, budget_curve
from imta_jax.evaluation.predictions import confidence
from imta_jax.evaluation.run import exit_rows
from imta_jax.models import MultiExitClassifier
from imta_jax.nn.pixels import normalize
from imta_jax.studies.gradient_variance import gradient_variance
from imta_jax.training.phases import phase_one_objective

# What a row keeps of each point of its budget curve.
_OF_A_POINT = ("quota", "mean_macs", "top1", "validation_top1")
# Validation images whose confidence ranks are kept for Figure 7.
_RANKED_IMAGES = 400
# Images per batch in which gradients are measured: the paper's batch on CIFAR.
_GRADIENT_BATCH = 64


def measured(
    config: Mapping[str, Any],
    costs: ExitCosts,
    validation: Predictions,
    test: Predictions,
    *,
    keep_ranks: bool,
) -> dict[str, Any]:
    """The part of a row that follows from an arm's predictions.

    Args:
      config: of the arm.
      costs: of its network.
      validation: its predictions there.
      test: its predictions there.
      keep_ranks: whether confidence ranks are kept, not their correlation alone.
    """
    settings = config["evaluation"]
    curve = budget_curve(validation, test, costs.macs, quotas=settings["quotas"])
    points = [{name: point[name] for name in _OF_A_POINT} for point in curve.rows("mean_macs")]
    sure = confidence(validation.logits)
    several = len(sure) > 1
    return {
        "exits": exit_rows(validation, test, costs, settings["calibration_bins"]),
        "budget_curve": points,
        "rank_correlation": float(spearmanr(sure[0], sure[1]).statistic) if several else None,
        "confidence_ranks": _ranks(sure) if several and keep_ranks else None,
    }


def _ranks(sure: np.ndarray) -> list[list[int]]:
    """Ranks of the first images' confidences [E, N] at the first two exits, 0 the least sure."""
    shown = sure[:2, :_RANKED_IMAGES]
    return [(rankdata(row, method="ordinal") - 1).astype(int).tolist() for row in shown]


def validation_curve(folder: Path, exits: slice) -> list[dict[str, Any]]:
    """Validation accuracy in percent per epoch of a phase, of some of the exits in its metrics."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {"epoch": row["epoch"], "top1": row["top1_per_exit"][exits]}
        for row in rows
        if row["split"] == "validation"
    ]


def seconds_of(folder: Path, batch_size: int) -> float:
    """How long a phase's training steps took, from its metrics."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    images = trained[0]["step"] * batch_size
    return sum(images / row["images_per_second"] for row in trained if row["images_per_second"])


def measured_gradients(
    config: Mapping[str, Any], dataset: Dataset, classifier: MultiExitClassifier, images: int
) -> dict[str, Any]:
    """Variance of gradients per stage of a trained phase-I network, on validation images.

    Args:
      config: of the arm.
      dataset: its data.
      classifier: the network after phase I.
      images: how many, in whole batches of 64; fewer if the split has fewer.

    Raises:
      ValueError: the split does not fill one batch.
    """
    batches = list(_normalized_batches(dataset, config, images))
    if not batches:
        count = len(dataset.splits["validation"])
        raise ValueError(
            f"gradient_variance_images needs a batch of {_GRADIENT_BATCH}; there are {count} "
            f"validation images and {images} are asked for"
        )
    found = gradient_variance(classifier, phase_one_objective(config), batches)
    return {"stages": found.stages.tolist(), "losses": found.losses.tolist()}


def _normalized_batches(
    dataset: Dataset, config: Mapping[str, Any], images: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    split: Split = dataset.splits["validation"]
    host = HostPipeline.from_config(config["data"])
    batches = eval_batches(
        split, dataset.preprocessing, _GRADIENT_BATCH, pipeline=config["data"]["pipeline"],
        host=host,
    )  # fmt: skip
    for number, batch in enumerate(batches):
        if (number + 1) * _GRADIENT_BATCH > images or not batch.mask.all():
            return
        pixels = normalize(jnp.asarray(batch.images), dataset.mean, dataset.std)
        yield pixels, jnp.asarray(batch.labels)


def cost_rows(costs: ExitCosts) -> list[dict[str, int]]:
    """Costs per exit, as `study.json` holds them."""
    names = ("macs", "published_ops", "params")
    columns: Sequence[np.ndarray] = [getattr(costs, name) for name in names]
    return [
        {"exit": i + 1, **{name: int(c[i]) for name, c in zip(names, columns, strict=True)}}
        for i in range(len(costs.macs))
    ]
