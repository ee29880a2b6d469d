"""Trained networks for `early_exit.py`, from a run's folder or from the package."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imta_jax.data import load_dataset
from imta_jax.evaluation import Predictions, collect_predictions, load_predictions, outcomes
from imta_jax.evaluation.budget import Outcomes
from imta_jax.models import MultiExitClassifier
from imta_jax.pretrained import load_pretrained
from imta_jax.training import last_phase, load_classifier


class Source(NamedTuple):
    """A trained network, test images and the outcomes by which thresholds are chosen."""

    classifier: MultiExitClassifier
    meta: dict[str, Any]
    images: np.ndarray
    validation: Outcomes
    test: Outcomes


def source_of_run(run: Path) -> Source:
    """The network that a finished run evaluated."""
    config = json.loads((run / "config.json").read_text())
    checkpoint = config["evaluation"]["checkpoint"]
    classifier, meta = load_classifier(run / last_phase(config), checkpoint)
    images = load_dataset(config["data"]).splits["test"].images
    validation, test = (
        outcomes(load_predictions(run / "evaluation" / f"logits_{split}.npz"))
        for split in ("validation", "test")
    )
    return Source(classifier, meta, images, validation, test)


def source_of_pretrained(name: str, data: str) -> Source:
    """A network of `imta_jax.pretrained`; half of the test images choose the thresholds.

    Args:
      name: one of `pretrained_names()`.
      data: `config.data.source` of the test images.
    """
    classifier, meta, _ = load_pretrained(name)
    split = load_dataset({"source": data, "validation_examples": 1000}).splits["test"]
    fields = {key: meta[key] for key in ("mean", "std")}
    predictions = collect_predictions(classifier, split, batch_size=250, **fields)
    half = len(predictions.labels) // 2
    first, second = (
        outcomes(Predictions(predictions.logits[:, images], predictions.labels[images]))
        for images in (slice(half), slice(half, None))
    )
    return Source(classifier, meta, split.images[half:], first, second)
