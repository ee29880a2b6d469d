"""Arrays of an evaluation that the report draws: the image gallery and reliability diagrams."""

from pathlib import Path

import numpy as np

from imta_jax.data import Dataset, evaluation_images
from imta_jax.evaluation.budget import Decisions
from imta_jax.evaluation.calibration import reliability
from imta_jax.evaluation.predictions import Predictions, confidence, correct_in_top
from imta_jax.runtime.array_files import write_npz


def write_gallery(
    path: Path, dataset: Dataset, test: Predictions, decisions: Decisions, images_per_side: int
) -> None:
    """Writes test images that leave at the first exit, and test images that leave at the last.

    Args:
      path: the `.npz` file.
      dataset: dataset with the test images.
      test: logits and labels of all test images.
      decisions: decisions for all test images, with the exits of the gallery.
      images_per_side: largest number of images of each kind.
    """
    last = len(test.logits) - 1
    sides = [np.flatnonzero(decisions.exit == e)[:images_per_side] for e in (0, last)]
    index = np.concatenate(sides)
    write_npz(
        path,
        images=evaluation_images(dataset.splits["test"], dataset.preprocessing, index),
        index=index,
        label=test.labels[index],
        prediction=decisions.prediction[index],
        exit=decisions.exit[index],
        confidence=decisions.confidence[index],
        first=np.arange(len(index)) < len(sides[0]),
    )


def write_calibration(path: Path, test: Predictions, bins: int) -> None:
    """Writes the reliability diagrams of all exits.

    Args:
      path: the `.npz` file, with `confidence`, `accuracy` and `count`, each [E, bins].
      test: logits and labels of the test images.
      bins: number of bins.
    """
    confidences, correct = confidence(test.logits), correct_in_top(test.logits, test.labels, 1)
    diagrams = [reliability(c, r, bins) for c, r in zip(confidences, correct, strict=True)]
    write_npz(
        path,
        confidence=np.stack([diagram.confidence for diagram in diagrams]),
        accuracy=np.stack([diagram.accuracy for diagram in diagrams]),
        count=np.stack([diagram.count for diagram in diagrams]),
    )
