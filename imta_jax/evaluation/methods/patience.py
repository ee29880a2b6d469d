"""Leaving when consecutive exits agree, instead of at a confidence threshold.

Patience (Zhou et al., "BERT Loses Patience", NeurIPS 2020, section 3.2) needs no confidence, no
threshold and no validation images. Its only setting is how many exits in a row must predict the
same class, so a network with E exits has E operating points.
"""

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Int, Int32


def patience_exits(predictions: ArrayLike, patience: int) -> Int32[np.ndarray, " N"]:
    """First exit at which `patience` exits in a row predict the same class, otherwise the last.

    Args:
      predictions: [E, N] predicted class of each exit (see `predicted`).
      patience: number of consecutive exits that must agree, from 1 (all images leave at the first
        exit) to E. The paper counts agreements with the previous exit, which is one fewer.

    Returns:
      Exit of each image, from 0.

    Raises:
      ValueError: predictions that are not integers [exits, images], or a patience outside 1..E.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or not np.issubdtype(predictions.dtype, np.integer):
        raise InputError(
            f"predictions are {predictions.dtype} {predictions.shape}; expected integers "
            "[exits, images], see `predicted`"
        )
    num_exits = len(predictions)
    if not 1 <= patience <= num_exits:
        raise InputError(f"patience={patience}; expected 1 to {num_exits}, the number of exits")
    leaves = run_lengths(predictions) >= patience
    leaves[-1] = True
    return leaves.argmax(axis=0).astype(np.int32)


def run_lengths(predictions: Int[np.ndarray, "E N"]) -> Int32[np.ndarray, "E N"]:
    """Number of consecutive exits, up to and including each exit, that predict its class."""
    lengths = np.ones(predictions.shape, np.int32)
    for i in range(1, len(lengths)):
        lengths[i] += np.where(predictions[i] == predictions[i - 1], lengths[i - 1], 0)
    return lengths
