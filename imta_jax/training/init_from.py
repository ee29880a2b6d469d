"""Initial parameters of phase I from a checkpoint, an `.npz` or a `.safetensors` file.

Arrays are found by name. `config.phase_one.init_from_map` changes the names of the source: each
pair of a regular expression and a replacement is applied with `re.sub`, in order, to every name.
Arrays of the network without a source of the same name and shape keep their random values. The log
and `phase_one/init_from.json` list what was loaded and what was not.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.config import PHASES, PhaseOneConfig
from imta_jax.distributed import is_first_process
from imta_jax.errors import InputError, MissingFileError
from imta_jax.runtime.array_files import read_npz, read_safetensors
from imta_jax.runtime.files import write_json
from imta_jax.runtime.paths import local_path
from imta_jax.training.checkpoint_reading import has_readable_checkpoint, read_model_arrays
from imta_jax.training.state import fill_tree, named_arrays

_log = logging.getLogger(__name__)

_FIELD = "config.phase_one.init_from"
_MAX_LISTED = 6
RECORD = "init_from.json"


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which array of a source each array of a network is loaded from.

    Attributes:
      loaded: names in the network -> names in the source.
      not_loaded: names in the network without an array of this name in the source.
      shapes_differ: names in the network -> what differs.
      not_used: names in the source that no array of the network has.
    """

    loaded: dict[str, str]
    not_loaded: list[str]
    shapes_differ: dict[str, str]
    not_used: list[str]


def load_initial_parameters(classifier: nnx.Module, settings: PhaseOneConfig, folder: Path) -> None:
    """Loads the parameters and batch statistics of `settings.init_from` in place.

    Args:
      classifier: the network of phase I.
      settings: `config.phase_one`; without `init_from` nothing happens.
      folder: folder of phase I. If it has a checkpoint, training resumes from it and nothing is
        loaded.

    Raises:
      InputError: see `check_init_from`.
    """
    if not settings.init_from or _has_begun(folder):
        return
    arrays = _read(settings.init_from)
    variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
    network = named_arrays(variables)
    assignment = assign(network, arrays, settings)
    loaded = {n: jnp.asarray(arrays[s], network[n].dtype) for n, s in assignment.loaded.items()}
    nnx.update(classifier, fill_tree(variables, network | loaded))
    if is_first_process():
        _report(assignment, len(network), settings.init_from, folder)


def check_init_from(classifier: nnx.Module, settings: PhaseOneConfig, folder: Path) -> None:
    """Checks that the arrays can be read and that some fit a network, which may be abstract.

    Raises:
      MissingFileError: the source does not exist.
      InputError: it is of another kind, an expression matches no name, or no array fits.
    """
    if settings.init_from and not _has_begun(folder):
        variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
        assign(named_arrays(variables), _read(settings.init_from), settings)


def assign(
    network: Mapping[str, Any], arrays: Mapping[str, np.ndarray], settings: PhaseOneConfig
) -> Assignment:
    """Finds the source of each array of a network.

    Args:
      network: arrays, which may be abstract, by name.
      arrays: arrays of the source, by name.
      settings: its `init_from_map` is applied to the names of the source.

    Raises:
      InputError: an expression matches no name, two arrays get one name, or no array fits.
    """
    sources = _renamed(arrays, settings.init_from_map)
    differ = {
        name: difference
        for name, x in network.items()
        if name in sources and (difference := _difference(arrays[sources[name]], x))
    }
    loaded = {n: sources[n] for n in network if n in sources and n not in differ}
    if not loaded:
        available = [f"{name} {arrays[source].shape}" for name, source in sources.items()]
        expected = [f"{name} {tuple(x.shape)}" for name, x in network.items()]
        raise InputError(
            f"{_FIELD}={settings.init_from}: none of its {len(arrays)} arrays fits the network. "
            f"Names there, after init_from_map: {_some(available)}; in the network: "
            f"{_some(expected)}; shapes that differ: {_some(differ)}. Set {_FIELD}_map"
        )
    missing = [name for name in network if name not in sources]
    return Assignment(loaded, missing, differ, [s for n, s in sources.items() if n not in network])


def _renamed(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """New names -> names of the source."""
    current = {name: name for name in names}
    for expression, replacement in pairs:
        try:
            changed = {n: re.subn(expression, replacement, new) for n, new in current.items()}
        except (re.error, IndexError) as error:
            raise InputError(f"{_FIELD}_map {(expression, replacement)}: {error}") from error
        if not any(count for _, count in changed.values()):
            raise InputError(
                f"{_FIELD}_map: {expression!r} is found in no name of the source; there are "
                f"{len(current)}, for example {_some(current.values())}"
            )
        current = {name: new for name, (new, _) in changed.items()}
    renamed: dict[str, str] = {}
    for name, new in current.items():
        if new in renamed:
            raise InputError(f"{_FIELD}_map gives {renamed[new]} and {name} the name {new}")
        renamed[new] = name
    return renamed


def _difference(source: np.ndarray, x: Any) -> str:
    """What keeps an array from being loaded; "" if nothing does."""
    if source.shape != x.shape:
        return f"{source.shape} in the source, {x.shape} in the network"
    are_float = [jnp.issubdtype(dtype, jnp.floating) for dtype in (source.dtype, x.dtype)]
    if are_float[0] == are_float[1]:
        return ""
    return f"{source.dtype} in the source, {x.dtype} in the network"


def _read(source: str) -> dict[str, np.ndarray]:
    path = local_path(_FIELD, source)
    if not path.exists():
        raise MissingFileError(f"{_FIELD}={source} does not exist: {path}")
    if path.is_dir():
        phases = [path / name for name in PHASES if (path / name).is_dir()]
        if phases:
            raise InputError(
                f"{_FIELD}={source} is the folder of a run; give a phase's: "
                + " or ".join(map(str, phases))
            )
        return read_model_arrays(path)
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    if path.suffix not in readers:
        raise InputError(
            f"{_FIELD} must be a phase's folder of checkpoints, an .npz or a .safetensors file; "
            f"found {source}"
        )
    return readers[path.suffix](path)


def _has_begun(folder: Path) -> bool:
    """Whether phase I resumes from a checkpoint."""
    return any(has_readable_checkpoint(path) for path in (folder, folder / "partial"))


def _report(assignment: Assignment, size: int, source: str, folder: Path) -> None:
    record = folder / RECORD
    write_json(record, {"source": source, **dataclasses.asdict(assignment)})
    _log.info("phase_one: %d of %d arrays are from %s", len(assignment.loaded), size, source)
    for description, names in (
        ("not in the source, initialized at random", assignment.not_loaded),
        ("not loaded, because shapes differ", assignment.shapes_differ),
        ("in the source, but not in the network", assignment.not_used),
    ):
        if names:
            _log.info("phase_one: %d arrays %s: %s", len(names), description, _some(names))
    _log.info("phase_one: all names are in %s", record)


def _some(names: Any) -> str:
    """The first names, with the values of a mapping."""
    texts = [f"{n} ({names[n]})" if isinstance(names, dict) else n for n in names]
    more = f" and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return (", ".join(texts[:_MAX_LISTED]) or "none") + more
