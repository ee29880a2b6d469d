"""The choice of training images that are held out for validation or testing."""

import numpy as np
from jaxtyping import Bool, Int, Int64

from imta_jax.errors import InputError


def stratified_holdout(
    labels: Int[np.ndarray, " N"], *, examples: int, seed: int, split: str = "validation"
) -> Bool[np.ndarray, " N"]:
    """Chooses examples to hold out, from each class in proportion to its size.

    The choice depends on the arguments only. It is the same in every version of NumPy.

    Args:
      labels: class of each training image, from 0.
      examples: number of images to hold out.
      seed: seed of the choice, at least 0.
      split: split that the images are held out for, for messages.

    Returns:
      A mask with `examples` True entries. The count of each class differs from its exact proportion
      by less than one, unless a class would lose its only images; see `class_quotas`.

    Raises:
      ValueError: `examples` is below the number of classes or leaves no training image.
    """
    _check_examples(examples, labels, f"config.data.{split}_examples")
    quotas = class_quotas(np.bincount(labels), examples)
    # NumPy may change the stream of Generator.permutation, but not the raw bits of PCG64.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    held_out = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        held_out[order[labels[order] == label][:quota]] = True
    return held_out


def class_quotas(counts: Int[np.ndarray, " K"], examples: int) -> Int64[np.ndarray, " K"]:
    """Distributes `examples` over classes in proportion to their counts.

    Uses the largest remainder method. Then, as long as a class loses all of its images and another
    class would keep more than one, the other gives one image instead.

    Args:
      counts: images of each class.
      examples: sum of the quotas, at most the sum of the counts.

    Returns:
      The quota of each class.
    """
    quotas, remainders = np.divmod(counts.astype(np.int64) * examples, counts.sum())
    largest = np.argsort(-remainders, kind="stable")
    quotas[largest[: examples - quotas.sum()]] += 1
    for emptied in np.flatnonzero((quotas == counts) & (counts > 0)):
        kept = counts - quotas
        largest_class = int(kept.argmax())
        if kept[largest_class] < 2:
            break
        quotas[emptied] -= 1
        quotas[largest_class] += 1
    return quotas


def _check_examples(examples: int, labels: np.ndarray, field: str) -> None:
    classes = np.unique(labels).size
    if examples < classes:
        raise InputError(
            f"{field} must be at least {classes}: one image of each class; found {examples}"
        )
    if examples >= len(labels):
        raise InputError(
            f"{field} is {examples}, expected less than {len(labels)}, the number of training"
            " images, so that some are left for training"
        )
