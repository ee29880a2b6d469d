"""Leaving when consecutive exits agree, instead of when one is sure.

Patience (Zhou et al., "BERT Loses Patience", NeurIPS 2020, section 3.2): no confidence, threshold
or validation image is needed, only how many exits in a row must give the same class. It offers as
many operating points as the network has exits. What they are worth is measured in `comparison`.
"""

import numpy as np


def patience_exits(predictions: np.ndarray, patience: int) -> np.ndarray:
    """The first exit that is the `patience`-th in a row to give its class; else the last exit.

    Args:
      predictions: integers [E, N], class that each exit would give (`predicted`).
      patience: how many consecutive exits must agree, 1 (all leave at the first exit) to E. (The
        paper counts agreements with the exit before, one fewer.)

    Returns:
      int32 [N], index of the exit taken, from 0.

    Raises:
      ValueError: predictions that are no integers [exits, images], a patience outside 1..E.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or not np.issubdtype(predictions.dtype, np.integer):
        raise ValueError(
            f"predictions are {predictions.dtype} {predictions.shape}; expected integers "
            "[exits, images], as `predicted` gives them"
        )
    num_exits = len(predictions)
    if not 1 <= patience <= num_exits:
        raise ValueError(
            f"patience {patience} with {num_exits} exits; expected 1 to {num_exits}, the number "
            "of consecutive exits that must agree"
        )
    satisfied = agreeing_in_a_row(predictions) >= patience
    satisfied[-1] = True
    return satisfied.argmax(axis=0).astype(np.int32)


def agreeing_in_a_row(predictions: np.ndarray) -> np.ndarray:
    """How many exits up to each, itself included, give its class without a break: [E, N] -> [E, N].

    The first exit has 1; an exit that says what the one before said has one more than that one.
    """
    run = np.ones(predictions.shape, np.int32)
    for i in range(1, len(run)):
        run[i] += np.where(predictions[i] == predictions[i - 1], run[i - 1], 0)
    return run
