"""Confidence intervals over the draw of the test images, of accuracies and their differences.

The trained network is fixed: the variation between training seeds is not included.
"""

from statistics import NormalDist

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Float32, Float64

_CHUNK_DRAWS = 2_000_000


def wilson_interval(
    fraction: ArrayLike, number: int, level: float = 0.95
) -> Float64[np.ndarray, "*points 2"]:
    """Wilson's score interval of a binomial proportion (Wilson 1927, JASA 22).

    Unlike fraction +- z * deviation, it stays within 0..1 and keeps a width at 0 and 1. Equals
    `scipy.stats.binomtest(...).proportion_ci(level, "wilson")`, without the import of `scipy.stats`
    (one second).

    Args:
      fraction: [...] successes divided by `number`, 0..1.
      number: number of images.
      level: coverage probability, above 0 and below 1.

    Returns:
      Lower and upper end, 0..1.

    Raises:
      ValueError: no images, or a fraction or level outside its range.
    """
    fraction = np.asarray(fraction, np.float64)
    if number < 1 or not ((fraction >= 0) & (fraction <= 1)).all():
        raise InputError(
            f"fraction={fraction}, number={number}; expected fractions in 0..1 of at least 1 image"
        )
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (fraction + z**2 / (2 * number)) / (1 + z**2 / number)
    variance = fraction * (1 - fraction) / number + z**2 / (4 * number**2)
    half_width = z * np.sqrt(variance) / (1 + z**2 / number)
    # Rounding can place the fraction itself just outside.
    low, high = np.minimum(center - half_width, fraction), np.maximum(center + half_width, fraction)
    return np.stack([np.maximum(low, 0.0), np.minimum(high, 1.0)], axis=-1)


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Float64[np.ndarray, "P 2"]:
    """Percentile bootstrap interval of means (Efron and Tibshirani 1993, section 13).

    Each resample draws images with replacement, the same images for all rows, so paired rows stay
    paired. The mean over a resample is a product with the number of times each image was drawn,
    which makes this 17 times faster than `scipy.stats.bootstrap` (120 rows, 10,000 images) with the
    same draws.

    Args:
      values: [P, N] one value per image, e.g. the difference in correctness of two methods.
      level: coverage probability, above 0 and below 1.
      resamples: number of resamples, at least 2.
      seed: seed of the draws.

    Returns:
      Lower and upper end of each row's mean. Both are the common value if all values of a row are
      equal.

    Raises:
      ValueError: `values` is not [rows, images], or `resamples` or `level` is outside its range.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.shape[1] == 0 or resamples < 2:
        raise InputError(
            f"values of shape {values.shape}, resamples={resamples}; expected [rows, images] with "
            "at least 1 image, and at least 2 resamples"
        )
    _check_level(level)
    generator, number = np.random.default_rng(seed), values.shape[1]
    chunk = max(1, _CHUNK_DRAWS // number)
    means = [
        _draw_counts(generator, min(chunk, resamples - done), number) @ values.T / number
        for done in range(0, resamples, chunk)
    ]
    ends = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends.T.astype(np.float64)


def _draw_counts(
    generator: np.random.Generator, resamples: int, number: int
) -> Float32[np.ndarray, "{resamples} {number}"]:
    """How often each image is drawn in each resample; rows sum to `number`."""
    drawn = generator.integers(0, number, (resamples, number))
    drawn += number * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * number)
    return counts.reshape(resamples, number).astype(np.float32)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level={level}; expected above 0 and below 1, usually 0.95")
