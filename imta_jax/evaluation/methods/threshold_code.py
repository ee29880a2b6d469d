"""Python code that applies the thresholds of one operating point, with NumPy or PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imta_jax.errors import InputError, unknown_name
from imta_jax.evaluation.methods.comparison_record import display_name
from imta_jax.evaluation.thresholds import ALWAYS_LEAVE

# Methods whose thresholds are compared with the highest softmax probability of an exit.
CONFIDENCE_METHODS = (
    *("sweep", "envelope", "temperature", "optimised"),
    *("expectation", "clipped", "net"),
)

_HEADER = '''"""Early exits by confidence: {description}.

Mean cost on test images: {mean_cost:g} of {full_cost:g}; top-1 accuracy: {top1:.2f}%.
"""

import {library}

# An image leaves at the first exit whose confidence reaches the threshold.
# None: every image leaves.
THRESHOLDS = {thresholds}
# Logits are divided by these numbers before the softmax.
TEMPERATURES = {temperatures}


def leaves(exit_index, logits):
    """Whether each image leaves at an exit.

    Args:
      exit_index: number of the exit, from 0.
      logits: [images, classes] of this exit, before the softmax.
    """
    threshold = THRESHOLDS[exit_index]
    if threshold is None:
'''
_BODIES = {
    "numpy": """        return np.ones(len(logits), bool)
    scaled = logits / TEMPERATURES[exit_index]
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    confidence = 1 / exponentials.sum(axis=-1)
    return confidence >= threshold
""",
    "torch": """        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    scaled = logits / TEMPERATURES[exit_index]
    confidence = torch.softmax(scaled, dim=-1).amax(dim=-1)
    return confidence >= threshold
""",
}
_SCORES_HEADER = '''"""Early exits by a score: {description}.

Mean cost on test images: {mean_cost:g} of {full_cost:g}; top-1 accuracy: {top1:.2f}%.
"""

import {library}

# An image leaves at the first exit whose score reaches the threshold.
# None: every image leaves.
THRESHOLDS = {thresholds}


def leaves(exit_index, scores):
    """Whether each image leaves at an exit.

    Args:
      exit_index: number of the exit, from 0.
      scores: [images] of this exit.
    """
    threshold = THRESHOLDS[exit_index]
    if threshold is None:
'''
_SCORES_BODIES = {
    "numpy": """        return np.ones(len(scores), bool)
    return np.asarray(scores, np.float32) >= np.float32(threshold)
""",
    "torch": """        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    return scores.float() >= threshold
""",
}
_LIBRARIES = {"numpy": "numpy as np", "torch": "torch"}
FORMATS = tuple(_BODIES)


def threshold_code(
    point: Mapping[str, Any], full_cost: float, library: str, *, scores: bool = False
) -> str:
    """A module with a function `leaves` that applies a point.

    Args:
      point: an entry of `points` of `comparison_record`.
      full_cost: cost of the last exit.
      library: one of `FORMATS`.
      scores: whether thresholds apply to scores that the caller computes, instead of logits.

    Raises:
      InputError: an unknown library, or a method that does not compare confidences.
    """
    if library not in FORMATS:
        raise unknown_name("format", library, FORMATS)
    if point["method"] not in CONFIDENCE_METHODS:
        raise InputError(
            f"method {point['method']!r} does not use thresholds of confidences only; expected one"
            f" of {', '.join(map(display_name, CONFIDENCE_METHODS))}"
        )
    thresholds = without_always(point["thresholds"])
    temperatures = point.get("temperatures") or [1.0] * len(thresholds)
    template, bodies = (_SCORES_HEADER, _SCORES_BODIES) if scores else (_HEADER, _BODIES)
    header = template.format(
        description=f"{display_name(point['method'])}, {point['asked']}",
        mean_cost=point["mean_cost"],
        full_cost=full_cost,
        top1=point["top1"],
        library=_LIBRARIES[library],
        thresholds=[value if value is None else _shortest(value) for value in thresholds],
        temperatures=[_shortest(value) for value in temperatures],
    )
    return header + bodies[library]


def without_always(thresholds: Sequence[float]) -> list[float | None]:
    """Thresholds with None where every image leaves."""
    return [None if value <= ALWAYS_LEAVE else value for value in thresholds]


def _shortest(value: float) -> float:
    """The shortest decimal number that is this number in float32."""
    return float(str(np.float32(value)))
