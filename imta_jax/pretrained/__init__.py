"""Trained networks that ship with the package: to evaluate and look at before training anything.

They are those behind the README's figures, small and briefly trained: examples, not records. Each
is one `.npz` of named arrays, with what the network is and what it reached as JSON beside them, so
that reading one runs no code.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from imta_jax.errors import InputError, unknown_name
from imta_jax.models import MultiExitClassifier
from imta_jax.training import load_classifier
from imta_jax.training.checkpoint_reading import fill_named
from imta_jax.training.state import named_arrays
from imta_jax.training.trained import empty_classifier

_FOLDER = Path(__file__).parent
_ABOUT = "about.json"


class Pretrained(NamedTuple):
    """A trained network and what is known of it.

    Attributes:
      classifier: in inference mode.
      meta: as `imta_jax.training.load_classifier` gives it: `class_names`, `mean`, `std`, ...
      results: of its run's `results.json` the parts `dataset`, `phases`, `exits`, `budget_curve`
        (with thresholds) and `reported_budgets`.
    """

    classifier: MultiExitClassifier
    meta: dict[str, Any]
    results: dict[str, Any]


def pretrained_names() -> list[str]:
    """The networks there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.npz"))


def load_pretrained(name: str) -> Pretrained:
    """Loads a network that ships with the package.

    Args:
      name: one of `pretrained_names()`.

    Raises:
      ValueError: an unknown name; the valid ones are listed.
    """
    path = _FOLDER / f"{name}.npz"
    if not path.exists():
        raise unknown_name("pretrained network", name, pretrained_names())
    return read_pretrained(path)


def read_pretrained(path: str | Path) -> Pretrained:
    """Reads what `write_pretrained` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or one whose arrays do not fit the network it says it is.
    """
    try:
        # Opened here, as NumPy leaves a file open that it then cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        about = json.loads(bytes(arrays.pop(_ABOUT)).decode())
    # An .npy gives a plain array, which is no context manager: TypeError.
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: expected an .npz that write_pretrained wrote ({error})"
        ) from error
    classifier = empty_classifier(about["meta"])
    try:
        fill_named(classifier, {n: a.astype(np.float32) for n, a in arrays.items()})
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    classifier.eval()
    return Pretrained(classifier, about["meta"], about["results"])


def write_pretrained(
    workdir: str | Path, path: str | Path, *, dtype: str = "float32", note: str = ""
) -> None:
    """Writes an evaluated run's network as one file.

    Args:
      workdir: a run that has been evaluated.
      path: the `.npz`.
      dtype: of the arrays there, "float32" or "float16" (half the size; the network's answers
        change in the third digit).
      note: on the data, for whoever quotes a number of it.

    Raises:
      FileNotFoundError: the run has no results or no checkpoint.
    """
    workdir = Path(workdir)
    results = json.loads((workdir / "results.json").read_text())
    phase = results["environment"]["evaluated_phase"]
    classifier, meta = load_classifier(workdir / phase)
    arrays = named_arrays(nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat)))
    about = {"meta": meta | {"note": note}, "results": _kept(results)}
    stored = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    # As bytes: an array of strings would be read with pickle by some.
    stored[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(path, **stored)


def _kept(results: Mapping[str, Any]) -> dict[str, Any]:
    parts = ("dataset", "phases", "environment", "exits", "budget_curve", "reported_budgets")
    return {part: results[part] for part in parts}
