"""Logits of all exits on a split, with labels, and the accuracies and confidences they give.

The evaluation computes everything from this pair of arrays, which is stored as `.npz`. It can come
from any framework: this module needs NumPy only. The confidence is the highest softmax probability
(paper section 4, "Adaptive inference").
"""

import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.array_shapes import Bool, Float, Float32, Float64, Int, Int32, Num
from imta_jax.runtime.array_files import write_npz
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.files import check_regular_file

# Values per chunk: 1 MiB of float32, so that the temporaries stay in a core's cache.
_CHUNK_VALUES = 2**18
# How far the sum of probabilities may be from 1, in float32 and in types of at most 16 bits.
_SUM_TOLERANCE, _LOW_PRECISION_TOLERANCE = 1e-3, 2e-2


class Predictions(NamedTuple):
    """Logits of all exits on a split, and its labels.

    Attributes:
      logits: values before the softmax, for E exits, N images and K classes.
      labels: class of each image, 0..K-1.
    """

    logits: Float32[np.ndarray, "E N K"]
    labels: Int32[np.ndarray, " N"]


def checked_predictions(predictions: tuple[ArrayLike, ArrayLike], source: str) -> Predictions:
    """Checks a (logits, labels) pair and converts it to `Predictions`.

    Args:
      predictions: logits [E, N, K] of any real type, bfloat16 and float8 included, and integer
        labels [N] in 0..K-1.
      source: origin of the pair, e.g. a file or a split. Error messages start with it.

    Returns:
      The pair, as float32 and int32.

    Raises:
      ValueError: wrong shapes or types, empty arrays, a label outside the classes, a logit that is
        not finite, or probabilities or percentages instead of logits. The message names the first
        invalid entry.
    """
    logits, labels = (np.asarray(part) for part in predictions)
    if logits.ndim != 3 or labels.shape != logits.shape[1:2]:
        raise InputError(
            f"{source}: expected logits [exits, images, classes] and labels [images], found "
            f"shapes {logits.shape} and {labels.shape}; stack the exits along the first axis, and "
            "pass one label per image"
        )
    if logits.size == 0 or logits.shape[2] < 2:
        raise InputError(
            f"{source}: logits have shape {logits.shape}; expected at least one exit, one image and"
            " two classes"
        )
    _check_labels(labels, logits.shape[2], source)
    tolerance = _SUM_TOLERANCE if logits.dtype.itemsize > 2 else _LOW_PRECISION_TOLERANCE
    logits = _as_float32(logits, source)
    _check_finite(logits, source)
    _check_no_probabilities(logits, tolerance, source)
    return Predictions(logits, labels.astype(np.int32, copy=False))


def save_predictions(path: str | Path, predictions: tuple[ArrayLike, ArrayLike]) -> None:
    """Writes logits [E, N, K] and labels [N] atomically as `.npz`.

    Raises:
      ValueError: see `checked_predictions`. Nothing is written.
    """
    checked = checked_predictions(predictions, f"predictions for {path}")
    write_npz(path, **checked._asdict())


def load_predictions(path: str | Path) -> Predictions:
    """Reads an `.npz` with arrays `logits` [E, N, K] and `labels` [N].

    Pickled objects are never loaded, because unpickling runs code.

    Raises:
      FileNotFoundError: the file does not exist.
      FileExistsError: it is no regular file.
      ValueError: the file is not an `.npz`, lacks an array, contains pickled objects, or contains
        arrays that `checked_predictions` rejects.
    """
    check_regular_file(Path(path))
    try:
        # Opened here: np.load leaks the file handle if the file is not an archive.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pair = arrays["logits"], arrays["labels"]
    # An .npy file loads as an array, which is not a context manager: TypeError.
    except (KeyError, *UNREADABLE_ARCHIVE) as error:
        detail = error if zipfile.is_zipfile(path) else "the file is not an .npz archive"
        raise InputError(
            f"{path}: expected an .npz with the arrays logits and labels ({detail}); "
            "write it with save_predictions or numpy.savez"
        ) from error
    return checked_predictions(pair, str(path))


def confidence(logits: Num[np.ndarray, "*batch K"]) -> Float32[np.ndarray, "*batch"]:
    """Highest softmax probability over the classes (paper section 4), in (0, 1].

    The probability of the highest logit z_max is 1 / sum_k exp(z_k - z_max), so the full softmax
    is not needed.

    Args:
      logits: usually [E, N, K].

    Returns:
      The confidences, usually [E, N].
    """
    return map_chunks(highest_probability, logits, np.float32)


def predicted(logits: Num[np.ndarray, "*batch K"]) -> Int32[np.ndarray, "*batch"]:
    """Class of the highest logit; the lowest such class if several are equal."""
    return map_chunks(lambda chunk: chunk.argmax(axis=-1), logits, np.int32)


def correct_in_top(
    logits: Num[np.ndarray, "E N K"], labels: Int[np.ndarray, " N"], k: int
) -> Bool[np.ndarray, "E N"]:
    """Whether the label is among the k classes with the highest logits.

    Equal logits rank by class, the lower class first, so k = 1 agrees with `predicted`. With
    k >= K every image counts as correct: top-5 accuracy over three classes is 100%.

    Args:
      logits: logits of all exits.
      labels: 0..K-1.
      k: number of classes, at least 1.

    Returns:
      True where the label is among the k classes.

    Raises:
      ValueError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k={k}; top-k accuracy needs k of at least 1")
    if k == 1:
        return predicted(logits) == labels[None, :]
    return np.stack([_rank_of_label(exit_logits, labels) < k for exit_logits in logits])


def anytime_accuracy(predictions: Predictions, top: int = 1) -> Float64[np.ndarray, " E"]:
    """Accuracy of each exit if all images leave there ("anytime prediction").

    Args:
      predictions: logits and labels.
      top: k of the top-k accuracy.

    Returns:
      Accuracy per exit, percent.
    """
    return 100.0 * correct_in_top(*predictions, k=top).mean(axis=1)


def map_chunks(
    function: Callable[[Float32[np.ndarray, "n K"]], np.ndarray],
    logits: Num[np.ndarray, "*batch K"],
    dtype: type,
) -> np.ndarray:
    """Applies a function of the class axis to chunks of the logits, on all CPU cores.

    Args:
      function: maps float32 logits [n, K] to values [n]. It must not modify its argument.
      logits: [..., K].
      dtype: type of the result.

    Returns:
      Values [...], one per logit vector.
    """
    logits = np.asarray(logits)
    vectors = logits.reshape(-1, logits.shape[-1])
    result = np.empty(len(vectors), dtype)
    size = max(1, _CHUNK_VALUES // vectors.shape[1])

    def work(start: int) -> None:
        chunk = vectors[start : start + size].astype(np.float32, copy=False)
        result[start : start + size] = function(chunk)

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy releases the GIL.
        list(pool.map(work, range(0, len(vectors), size)))
    return result.reshape(logits.shape[:-1])


def highest_probability(logits: Float[np.ndarray, "n K"]) -> Float[np.ndarray, " n"]:
    """Highest softmax probability of each logit vector."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return 1.0 / np.exp(shifted, out=shifted).sum(axis=-1)


def _rank_of_label(
    logits: Num[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Number of classes that rank before the label, from 0."""
    label_logit = np.take_along_axis(logits, labels[:, None], axis=1)
    lower_class = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return ((logits > label_logit) | ((logits == label_logit) & lower_class)).sum(axis=1)


def _check_labels(labels: np.ndarray, num_classes: int, source: str) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{source}: labels are {labels.dtype}; expected integers from 0")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"{source}: label {labels[outside[0]]} of image {outside[0]} is outside "
            f"0..{num_classes - 1}, the classes of the logits; were they made for another dataset?"
        )


def _as_float32(logits: np.ndarray, source: str) -> Float32[np.ndarray, "E N K"]:
    """Converts logits of any real type."""
    dtype = logits.dtype
    if dtype == np.dtype("V2"):  # bfloat16 from a file of NumPy, which does not store its name
        return (logits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    real = np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.integer)
    # The types of the ml_dtypes package, such as bfloat16, are not subtypes of NumPy's.
    if not real and not (dtype.kind in "Vf" and np.can_cast(dtype, np.float32)):
        raise InputError(
            f"{source}: logits are {dtype}; expected real numbers. NumPy files do not store the "
            "type of float8 arrays: convert them to float32 before saving, or use save_predictions"
        )
    return logits.astype(np.float32, copy=False)


def _check_no_probabilities(
    logits: Float32[np.ndarray, "E N K"], tolerance: float, source: str
) -> None:
    """Rejects softmax probabilities and percentages. Their softmax would give wrong exits."""
    for e, exit_logits in enumerate(logits):
        for total, name, relative in ((1, "probabilities", tolerance), (100, "percentages", 1e-2)):
            if not _sums_to(exit_logits, total, relative):
                continue
            scale = "" if total == 1 else " / 100"
            raise InputError(
                f"{source}: the logits of exit {e + 1} are {name}: they are not negative, and "
                f"those of each image sum to {total}; expected the values before the softmax. Pass "
                f"np.log(np.maximum(probabilities{scale}, 1e-30)), which has the same softmax"
            )


def _sums_to(exit_logits: Float32[np.ndarray, "N K"], total: float, tolerance: float) -> bool:
    """Whether no value is negative and those of each image sum to a total.

    One-hot votes do not count, because no other logits of them exist.
    """
    if exit_logits.min() < 0 or exit_logits.max() > total * (1 + tolerance):
        return False
    if np.isin(exit_logits, (0, total)).all():
        return False
    return bool((np.abs(exit_logits.sum(axis=1) - total) <= total * tolerance).all())


def exits_in_unit_interval(logits: Float32[np.ndarray, "E N K"]) -> list[int]:
    """The exits, from 1, whose logits are all in 0..1, as the outputs of a sigmoid are.

    One-hot votes do not count, because no other logits of them exist.
    """
    return [
        e + 1
        for e, exit_logits in enumerate(logits)
        if exit_logits.min() >= 0
        and exit_logits.max() <= 1
        and not np.isin(exit_logits, (0, 1)).all()
    ]


def _check_finite(logits: Float32[np.ndarray, "E N K"], source: str) -> None:
    for e, exit_logits in enumerate(logits):  # One exit at a time: a split can have 200 MB.
        finite = np.isfinite(exit_logits)
        if not finite.all():
            n, k = np.argwhere(~finite)[0]
            raise InputError(
                f"{source}: logit {exit_logits[n, k]} at exit {e + 1}, image {n}, class {k} is not "
                "finite; the network diverged or the file is damaged"
            )
