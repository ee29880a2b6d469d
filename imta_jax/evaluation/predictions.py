"""What a network said about a split: logits of every exit, the labels, and what follows from them.

Everything the evaluation reports is computed from one such pair, kept as `.npz`, so that a network
of any framework can be evaluated: this module and those built on it need NumPy alone (paper
section 4, "Adaptive inference": the confidence is the highest softmax probability). Running a
network to get the logits is left to `collect`, thresholds to `thresholds`, the sweep to `adaptive`.
"""

import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.files import replacing

# Values in one piece of work: 1 MiB of float32, so that its temporaries stay in a core's cache.
_CHUNK_VALUES = 2**18


class Predictions(NamedTuple):
    """Logits of all exits on a split, and its labels.

    Attributes:
      logits: float32 [E, N, K], before the softmax.
      labels: int32 [N], class of each image, from 0.
    """

    logits: np.ndarray
    labels: np.ndarray


def checked_predictions(predictions: tuple[np.ndarray, np.ndarray], source: str) -> Predictions:
    """The (logits, labels) pair as `Predictions`, after making sure that it can be evaluated.

    Args:
      predictions: logits [E, N, K] of any float type and integer labels [N] in 0..K-1.
      source: where the pair comes from (a file, a split); opens every message.

    Raises:
      ValueError: wrong rank or length, nothing in it, a label outside the classes, a logit that is
        not finite (the first offender is named).
    """
    logits, labels = (np.asarray(part) for part in predictions)
    if logits.ndim != 3 or labels.shape != logits.shape[1:2]:
        raise ValueError(
            f"{source}: expected logits [exits, images, classes] and labels [images], found "
            f"shapes {logits.shape} and {labels.shape}; stack the exits along the first axis"
        )
    if logits.size == 0:
        raise ValueError(f"{source}: empty, logits have shape {logits.shape}; collect them again")
    if not (np.issubdtype(logits.dtype, np.floating) or np.issubdtype(logits.dtype, np.integer)):
        raise ValueError(f"{source}: logits are {logits.dtype}, expected real numbers")
    _check_labels(labels, logits.shape[2], source)
    logits = logits.astype(np.float32, copy=False)
    _check_finite(logits, source)
    return Predictions(logits, labels.astype(np.int32, copy=False))


def save_predictions(path: str | Path, predictions: tuple[np.ndarray, np.ndarray]) -> None:
    """Writes logits [E, N, K] and labels [N] as `.npz`: whole or, if interrupted, not at all.

    Raises:
      ValueError: as `checked_predictions`; nothing is written then.
    """
    checked = checked_predictions(predictions, f"predictions for {path}")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **checked._asdict())


def load_predictions(path: str | Path) -> Predictions:
    """Reads what `save_predictions` wrote, or any `.npz` with arrays `logits` and `labels`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an `.npz`, lacks an array, holds pickled objects (never read, as
        unpickling runs code), or holds arrays that `checked_predictions` refuses.
    """
    try:
        # Opened here, as NumPy leaves a file open that it then cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pair = arrays["logits"], arrays["labels"]
    # An .npy instead of an .npz gives a plain array, which is no context manager: TypeError.
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected an .npz with the arrays logits and labels ({error}); "
            "write it with save_predictions or numpy.savez"
        ) from error
    return checked_predictions(pair, str(path))


def confidence(logits: np.ndarray) -> np.ndarray:
    """The highest softmax probability of each row (paper section 4), in (0, 1].

    The probability of the highest logit z_max is exp(0) / sum_k exp(z_k - z_max), so the softmax
    itself is never built.

    Args:
      logits: [..., K], usually [E, N, K].

    Returns:
      float32 [...], usually [E, N].
    """
    return by_rows(highest_probability, logits, np.float32)


def predicted(logits: np.ndarray) -> np.ndarray:
    """The class of the highest logit, the lowest such class in a tie: [..., K] -> int32 [...]."""
    return by_rows(lambda rows: rows.argmax(axis=-1), logits, np.int32)


def correct_in_top(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k classes with the highest logits.

    Equal logits rank by class, the lower first, so that k = 1 agrees with `predicted`. With k >= K
    every image counts as correct: a top-5 accuracy over three classes is 100%.

    Args:
      logits: [E, N, K].
      labels: integers [N] in 0..K-1.
      k: from 1.

    Returns:
      bool [E, N].

    Raises:
      ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"top-{k} accuracy asked for; k counts classes and starts at 1")
    logits, labels = np.asarray(logits), np.asarray(labels)
    if k == 1:
        return predicted(logits) == labels[None, :]
    return np.stack([_rank_of_label(rows, labels) < k for rows in logits])


def anytime_accuracy(predictions: Predictions, top: int = 1) -> np.ndarray:
    """Accuracy when every image leaves at the same exit ("anytime prediction").

    Args:
      predictions: logits [E, N, K] and labels [N].
      top: the label must be among that many highest logits.

    Returns:
      float64 [E], percent.
    """
    return 100.0 * correct_in_top(*predictions, k=top).mean(axis=1)


def by_rows(
    function: Callable[[np.ndarray], np.ndarray], logits: np.ndarray, dtype: type
) -> np.ndarray:
    """Applies `function` (float32 [n, K] -> [n]) to pieces of the rows, on all cores.

    Args:
      function: what becomes of each row; it must not write into what it is given.
      logits: [..., K].
      dtype: of the result.

    Returns:
      [...], one value per row.
    """
    logits = np.asarray(logits)
    rows = logits.reshape(-1, logits.shape[-1])
    result = np.empty(len(rows), dtype)
    step = max(1, _CHUNK_VALUES // rows.shape[1])

    def work(start: int) -> None:
        piece = rows[start : start + step].astype(np.float32, copy=False)
        result[start : start + step] = function(piece)

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy releases the interpreter's lock
        list(pool.map(work, range(0, len(rows), step)))
    return result.reshape(logits.shape[:-1])


def highest_probability(rows: np.ndarray) -> np.ndarray:
    """The highest softmax probability of each row: [n, K] -> [n]."""
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return 1.0 / np.exp(shifted, out=shifted).sum(axis=-1)


def _rank_of_label(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label's, in one exit's logits [N, K]: integers [N]."""
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return ((logits > of_label) | ((logits == of_label) & earlier)).sum(axis=1)


def _check_labels(labels: np.ndarray, num_classes: int, source: str) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{source}: labels are {labels.dtype}, expected integers from 0")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise ValueError(
            f"{source}: label {labels[outside[0]]} of image {outside[0]} is outside "
            f"0..{num_classes - 1}, the classes of the logits; were they made for another dataset?"
        )


def _check_finite(logits: np.ndarray, source: str) -> None:
    for exit_index, of_exit in enumerate(logits):  # exit by exit: a split can be 200 MB
        finite = np.isfinite(of_exit)
        if not finite.all():
            image, label = np.argwhere(~finite)[0]
            raise ValueError(
                f"{source}: logit {of_exit[image, label]} at exit {exit_index}, image {image}, "
                f"class {label} is not finite; the network has diverged or the file is damaged"
            )
