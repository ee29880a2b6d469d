"""Random logits and outcomes of a network with exits, for the tests of evaluation."""

import numpy as np

from imta_jax.evaluation import Outcomes, Predictions, exit_of
from imta_jax.evaluation.budget import correct_at

COSTS = np.array([10, 25, 45, 70])


def split(
    seed: int, num_images: int = 500, num_exits: int = 4, num_classes: int = 7
) -> Predictions:
    """Logits that favor the label more at each later exit."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images).astype(np.int32)
    logits = generator.normal(size=(num_exits, num_images, num_classes)).astype(np.float32)
    logits[:, np.arange(num_images), labels] += np.linspace(0.5, 3, num_exits)[:, None]
    return Predictions(logits, labels)


def overconfident_split(
    seed: int, num_images: int = 600, num_exits: int = 4, num_classes: int = 7
) -> Predictions:
    """Like `split`, with easy and hard images, and confidences above the accuracy."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images).astype(np.int32)
    logits = generator.normal(size=(num_exits, num_images, num_classes)).astype(np.float32)
    easiness = generator.normal(size=num_images) + np.linspace(0.5, 2.5, num_exits)[:, None]
    logits[:, np.arange(num_images), labels] += easiness.astype(np.float32)
    return Predictions(logits * np.float32(2), labels)


def random_outcomes(seed: int, num_images: int, num_exits: int = 4, ties: bool = True) -> Outcomes:
    """Confidences that correlate with correctness; two digits each if `ties`."""
    generator = np.random.default_rng(seed)
    easiness = generator.normal(size=num_images) + np.linspace(0, 1, num_exits)[:, None]
    score = easiness + generator.normal(size=(num_exits, num_images))
    correct = easiness + generator.normal(size=(num_exits, num_images)) > 0
    confidence = 1 / (1 + np.exp(-score))
    return Outcomes((confidence.round(2) if ties else confidence).astype(np.float32), correct)


def measure(outcomes: Outcomes, thresholds, costs) -> tuple[np.ndarray, np.ndarray]:
    """Number of correct predictions and mean cost, per row of thresholds."""
    exits = exit_of(outcomes.confidence, thresholds)
    num_correct = correct_at(exits, outcomes.correct).sum(axis=-1)
    return num_correct, np.asarray(costs)[exits].mean(axis=-1)
