"""Files of a split for the threshold command: logits, or scores of an exit rule.

Both are `.npz`. Logits have the arrays `logits` [E, N, K] and `labels` [N]. Scores have the arrays
`scores` [E, N], high where an image should leave, and `correct` [E, N], whether the exit's
prediction is correct.
"""

import zipfile
from pathlib import Path

import numpy as np

from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.evaluation.budget import Outcomes, checked_outcomes
from imta_jax.evaluation.predictions import Predictions, load_predictions
from imta_jax.runtime.files import check_regular_file

_SCORES = ("scores", "correct")


def load_split(path: str | Path) -> Predictions | Outcomes:
    """Reads logits or scores. Pickled objects are never loaded.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not an `.npz` with one of the two pairs of arrays, has both, or an
        array is invalid.
    """
    names = _array_names(Path(path))
    if not names & set(_SCORES):
        return load_predictions(path)
    if not names >= set(_SCORES) or "logits" in names:
        raise InputError(
            f"{path}: expected the arrays scores and correct, or logits and labels; found "
            f"{', '.join(sorted(names))}"
        )
    with np.load(path, allow_pickle=False) as arrays:
        try:
            scores, correct = (arrays[name] for name in _SCORES)
        except UNREADABLE_ARCHIVE as error:
            raise InputError(f"{path}: scores or correct cannot be read: {error}") from error
    return _checked(path, scores, correct)


def _array_names(path: Path) -> set[str]:
    """Names in an archive; none if the file is not an archive."""
    check_regular_file(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            return set()
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}


def _checked(path: str | Path, scores: np.ndarray, correct: np.ndarray) -> Outcomes:
    real = np.issubdtype(scores.dtype, np.floating) or np.issubdtype(scores.dtype, np.integer)
    if not real:
        raise InputError(f"{path}: scores are {scores.dtype}; expected real numbers")
    if correct.dtype != bool and np.isin(correct, (0, 1)).all():
        correct = correct.astype(bool)
    try:
        return checked_outcomes(scores, correct)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
