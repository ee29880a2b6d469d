"""Which training images are held out for validation, or for the test where there is no split.

Nothing here depends on how they are used.
"""

import numpy as np


def stratified_holdout(
    labels: np.ndarray, *, examples: int, seed: int, split: str = "validation"
) -> np.ndarray:
    """Chooses examples to hold out, each class giving its share of them to within one image.

    Args:
      labels: integers [N], from 0.
      examples: how many to hold out.
      seed: of the choice; labels, `examples` and seed determine it alone, in every NumPy version.
      split: what they are held out for; named in messages.

    Returns:
      bool [N], True for the `examples` images held out.

    Raises:
      ValueError: `examples` below the number of classes present, or none left to train on; a
        negative seed.
    """
    if seed < 0:
        raise ValueError(f"validation_seed is {seed}, expected at least 0")
    _check_examples(examples, labels, f"config.data.{split}_examples")
    quotas = class_quotas(np.bincount(labels), examples)
    # Raw bits and a stable sort, not Generator.permutation, whose stream NumPy may change.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    held_out = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        held_out[order[labels[order] == label][:quota]] = True
    return held_out


def class_quotas(counts: np.ndarray, examples: int) -> np.ndarray:
    """Shares `examples` out in proportion to the counts, largest remainders first.

    Args:
      counts: integers [K], images of each class.
      examples: the total of the quotas, at most that of the counts.

    Returns:
      int64 [K], each within one of `examples * counts / sum(counts)`.
    """
    quotas, remainders = np.divmod(counts.astype(np.int64) * examples, counts.sum())
    largest = np.argsort(-remainders, kind="stable")
    quotas[largest[: examples - quotas.sum()]] += 1
    return quotas


def _check_examples(examples: int, labels: np.ndarray, field: str) -> None:
    present = np.unique(labels).size
    if examples < present:
        raise ValueError(
            f"{field} is {examples}, expected at least {present}: one image of each of the classes"
        )
    if examples >= len(labels):
        raise ValueError(
            f"{field} is {examples}, but there are {len(labels)} training images: fewer"
            " must be held out, so that some are left to train on"
        )
