"""Checks of the arguments of `AdaptiveClassifier`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from imta_jax.errors import InputError
from imta_jax.runtime.environment import usable_cores

# Smallest number of images for which a batch is divided between workers.
MIN_IMAGES_PER_WORKER = 8


class ThresholdsAndFractions(NamedTuple):
    """Thresholds of the exits, and the expected fraction of images at each.

    Attributes:
      thresholds: thresholds on the score of the exit rule, per exit.
      exit_fractions: expected fraction of the images that leave at each exit; None if unknown.
    """

    thresholds: Float32[np.ndarray, " E"]
    exit_fractions: Float32[np.ndarray, " E"] | None


def check_operating_point(
    thresholds: Any, exit_fractions: Any, num_exits: int
) -> ThresholdsAndFractions:
    """Checks thresholds and exit fractions.

    Raises:
      ValueError: not one number per exit, or fractions that are negative or sum to more than 1.
    """
    thresholds = _per_exit("thresholds", thresholds, num_exits)
    if exit_fractions is None:
        return ThresholdsAndFractions(thresholds, None)
    exit_fractions = _per_exit("exit_fractions", exit_fractions, num_exits)
    if (exit_fractions < 0).any() or exit_fractions.sum() > 1.001:
        raise InputError(
            "exit_fractions: expected fractions from 0 to 1 with a sum of at most 1; found "
            f"{exit_fractions.tolist()}"
        )
    return ThresholdsAndFractions(thresholds, exit_fractions)


def resolve_num_workers(num_workers: int | None, max_batch_size: int) -> int:
    """Checks `max_batch_size` and `num_workers`, and chooses the default number of workers.

    Raises:
      ValueError: a value out of range.
    """
    if max_batch_size < 1:
        raise InputError(f"max_batch_size must be at least 1; found {max_batch_size}")
    if num_workers is None:
        multicore = jax.default_backend() == "cpu" and usable_cores() > 1
        return 2 if multicore and max_batch_size >= 2 * MIN_IMAGES_PER_WORKER else 1
    if not 1 <= num_workers <= max_batch_size:
        raise InputError(
            f"num_workers must be between 1 and max_batch_size={max_batch_size}; found "
            f"{num_workers}"
        )
    return num_workers


def resolve_batch_sizes(limit: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the batch sizes, ascending.

    By default, powers of two, 12 and 24 below `limit`, and `limit`.

    Raises:
      ValueError: a size out of range.
    """
    if sizes is None:
        powers = [2**n for n in range((limit - 1).bit_length())]
        return (*sorted({size for size in (*powers, 12, 24) if size < limit}), limit)
    if not len(sizes) or min(sizes) < 1 or max(sizes) > limit:
        raise InputError(
            f"batch_sizes must be between 1 and {limit} (max_batch_size / num_workers); found "
            f"{tuple(sizes)}"
        )
    return tuple(sorted({int(size) for size in sizes}))


def workers_for(count: int, num_workers: int, capacity: int) -> int:
    """The number of workers for `count` images. A single worker uses all cores."""
    needed = -(-count // capacity)
    return max(1, needed, min(num_workers, count // MIN_IMAGES_PER_WORKER))


def few_batch_sizes(batch_size: int, *, num_workers: int | None = None) -> dict[str, Any]:
    """Arguments of `AdaptiveClassifier` with few batch sizes, so that few programs are compiled.

    Args:
      batch_size: largest batch.
      num_workers: by default 2 on a CPU for batches that two workers divide, else 1.
    """
    if num_workers is None:
        on_cpu = jax.default_backend() == "cpu"
        num_workers = 2 if on_cpu and batch_size >= 2 * MIN_IMAGES_PER_WORKER else 1
    capacity = -(-batch_size // num_workers)
    sizes = {min(4**power, capacity) for power in range(capacity.bit_length())}
    return {
        "max_batch_size": batch_size,
        "num_workers": num_workers,
        "batch_sizes": sorted(sizes),
    }


def _per_exit(name: str, values: Any, num_exits: int) -> Float32[np.ndarray, " E"]:
    values = np.asarray(values, np.float32)
    if values.shape != (num_exits,):
        raise InputError(
            f"{name}: expected one value for each of the {num_exits} exits; found shape "
            f"{values.shape}; use the values that were chosen for this network"
        )
    if np.isnan(values).any():
        raise InputError(f"{name}: expected numbers; found {values.tolist()}")
    return values
