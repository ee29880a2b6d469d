"""How sure a measured accuracy is: confidence intervals over the draw of the test images.

Nothing here knows of exits. The training of the network is taken as given: what another seed would
bring is not in these intervals.
"""

from statistics import NormalDist

import numpy as np

_CHUNK_DRAWS = 2_000_000


def wilson_interval(share: np.ndarray, number: int, level: float = 0.95) -> np.ndarray:
    """Wilson's score interval of a share of independent images (1927, JASA 22).

    Unlike share +- z * deviation it stays within 0..1 and does not vanish at 0 or 1.

    Args:
      share: [...], successes divided by `number`, 0..1.
      number: images.
      level: probability that the interval covers, above 0 and below 1.

    Returns:
      float64 [..., 2], lower and upper end, 0..1.

    Raises:
      ValueError: no images, a share or a level outside its range.
    """
    share = np.asarray(share, np.float64)
    if number < 1 or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"share {share} of {number} images; expected 0..1 of at least one")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    # Rounding may leave the share itself just outside.
    low, high = np.minimum(centre - half, share), np.maximum(centre + half, share)
    return np.stack([np.maximum(low, 0.0), np.minimum(high, 1.0)], axis=-1)


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Percentile bootstrap of means over the same images (Efron and Tibshirani 1993, section 13).

    Each resample draws all images anew, with replacement, for all rows alike: rows that were
    paired stay so. A mean over a resample is a product with how often each image was drawn.

    Args:
      values: [P, N], per row a value per image, e.g. the difference of two methods' answers.
      level: probability that an interval covers, above 0 and below 1.
      resamples: how often to draw.
      seed: of the draws.

    Returns:
      float64 [P, 2], lower and upper end of each row's mean. Where all values of a row are alike
      nothing can be learnt of its spread, and both ends are that value.

    Raises:
      ValueError: values that are not [rows, images], fewer than two resamples, an unusable level.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.shape[1] == 0 or resamples < 2:
        raise ValueError(
            f"values of shape {values.shape} and {resamples} resamples; expected [rows, images], "
            "at least one image and two resamples"
        )
    _check_level(level)
    generator, number = np.random.default_rng(seed), values.shape[1]
    together = max(1, _CHUNK_DRAWS // number)
    means = [
        _times_drawn(generator, min(together, resamples - done), number) @ values.T / number
        for done in range(0, resamples, together)
    ]
    ends = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends.T.astype(np.float64)


def _times_drawn(generator: np.random.Generator, resamples: int, number: int) -> np.ndarray:
    """How often each of so many images is drawn, float32 [resamples, number]; rows sum to it."""
    drawn = generator.integers(0, number, (resamples, number))
    drawn += number * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * number)
    return counts.reshape(resamples, number).astype(np.float32)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}; expected above 0 and below 1, usually 0.95")
