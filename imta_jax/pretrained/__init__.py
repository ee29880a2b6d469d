"""Trained networks that ship with the package, for evaluation without training.

They are small, were trained briefly, and serve as examples. Each is one `.npz` of named arrays with
the network's description and results as JSON. Reading it runs no code.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from imta_jax.errors import UNREADABLE_ARCHIVE, InputError, unknown_name
from imta_jax.evaluation.results import evaluated_phase, read_evaluated_results
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.paths import local_path
from imta_jax.training.network_arrays import empty_classifier, fill_named
from imta_jax.training.state import named_arrays

_FOLDER = Path(__file__).parent
_ABOUT = "about.json"
# Sections of results.json that are stored.
_SECTIONS = ("dataset", "phases", "environment", "exits", "budget_curve", "reported_budgets")


class Pretrained(NamedTuple):
    """A trained network with its metadata and results.

    Attributes:
      classifier: classifier in inference mode.
      meta: metadata as from `imta_jax.training.load_classifier`: `class_names`, `mean`, `std`, ...
      results: sections of the run's `results.json`: `dataset`, `phases`, `environment`, `exits`,
        `budget_curve` (with thresholds) and `reported_budgets`.
    """

    classifier: MultiExitClassifier
    meta: dict[str, Any]
    results: dict[str, Any]


def pretrained_names() -> list[str]:
    """Names of the available networks."""
    return sorted(path.stem for path in _FOLDER.glob("*.npz"))


def load_pretrained(name: str) -> Pretrained:
    """Loads a network that ships with the package.

    Args:
      name: one of `pretrained_names()`.

    Returns:
      The network.

    Raises:
      ValueError: an unknown name. The message lists the valid names.
    """
    path = _FOLDER / f"{name}.npz"
    if not path.exists():
        raise unknown_name("pretrained network", name, pretrained_names())
    return read_pretrained(path)


def read_pretrained(path: str | Path) -> Pretrained:
    """Reads a file of `write_pretrained`.

    Args:
      path: the `.npz`.

    Returns:
      The network.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: another kind of file, or arrays that do not fit the described network.
    """
    try:
        # Opened here: np.load leaks the file handle if the file is not an archive.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        record = json.loads(bytes(arrays.pop(_ABOUT)).decode())
    # An .npy file loads as an array, which is not a context manager: TypeError.
    except (KeyError, *UNREADABLE_ARCHIVE) as error:
        raise InputError(
            f"{path}: expected an .npz written by write_pretrained ({error})"
        ) from error
    classifier = empty_classifier(record["meta"])
    try:
        fill_named(classifier, {n: a.astype(np.float32) for n, a in arrays.items()})
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    classifier.eval()
    return Pretrained(classifier, record["meta"], record["results"])


def write_pretrained(
    workdir: str | Path, path: str | Path, *, dtype: str = "float32", note: str = ""
) -> None:
    """Writes the network of an evaluated run as one file.

    Args:
      workdir: folder of an evaluated run.
      path: the `.npz`.
      dtype: type of the stored arrays, "float32" or "float16". "float16" halves the size and
        changes the logits in the third digit.
      note: remark about the data, stored in the metadata.

    Raises:
      FileNotFoundError: the run has no results or no checkpoint.
    """
    # Imported here because Orbax is not needed to read a network.
    from imta_jax.training.loading import load_classifier

    workdir = local_path("workdir", workdir)
    results = read_evaluated_results(workdir)
    phase = evaluated_phase(results, workdir / "results.json")
    classifier, meta = load_classifier(workdir / phase)
    arrays = named_arrays(nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat)))
    record = {"meta": meta | {"note": note}, "results": {name: results[name] for name in _SECTIONS}}
    stored: dict[str, Any] = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    # As bytes: NumPy would pickle an array of objects.
    stored[_ABOUT] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez_compressed(path, **stored)  # type: ignore[arg-type]
