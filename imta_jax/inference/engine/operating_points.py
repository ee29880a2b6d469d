"""The operating point for a budget in milliseconds."""

from collections.abc import Sequence

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.operating_points import OperatingPoint


def best_within_ms(
    points: Sequence[OperatingPoint], exit_ms: Sequence[float] | np.ndarray, budget_ms: float
) -> OperatingPoint:
    """Returns the point with the best validation accuracy within a mean time per image.

    Args:
      points: with `validation_exit_fractions` each.
      exit_ms: [E] milliseconds per image up to each exit (`StageProfile.exit_ms`).
      budget_ms: mean milliseconds per image.

    Returns:
      The point.

    Raises:
      ValueError: every point takes longer; names the shortest time.
    """
    expected = [
        sum(f * ms for f, ms in zip(point.validation_exit_fractions or (), exit_ms, strict=True))
        for point in points
    ]
    affordable = [p for p, ms in zip(points, expected, strict=True) if ms <= budget_ms]
    if not affordable:
        raise InputError(
            f"no operating point takes budget_ms={budget_ms:g} or less per image on this machine; "
            f"the fastest takes {min(expected):.3g} ms"
        )
    return max(affordable, key=lambda point: point.validation_top1)
