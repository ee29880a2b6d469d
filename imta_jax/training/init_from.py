"""Initial parameters of phase I from a checkpoint, an `.npz` or a `.safetensors` file.

Arrays are found by name. `config.phase_one.init_from_map` changes the names of the source: each
pair of a regular expression and a replacement is applied with `re.sub`, in order, to every name.
Then an array may have the name that PyTorch gives it (`weight` instead of `kernel` or `scale`,
`running_mean`, `running_var`); kernels of this name are transposed from PyTorch's layout.
Arrays of the network without a source of the same name and shape keep their random values. The log
and `phase_one/init_from.json` list what was loaded and what was not.
"""

import dataclasses
import hashlib
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
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.runtime.paths import local_path, reason_missing
from imta_jax.training.checkpoint_reading import has_readable_checkpoint, read_model_arrays
from imta_jax.training.source_names import kernel_axes, pytorch_name, suggested_map, transposes
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
      transposed: names in the network of those loaded from PyTorch's layout.
    """

    loaded: dict[str, str]
    not_loaded: list[str]
    shapes_differ: dict[str, str]
    not_used: list[str]
    transposed: list[str]


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
    assignment, found = assign(network, arrays, settings)
    loaded = {n: jnp.asarray(x, network[n].dtype) for n, x in found.items()}
    nnx.update(classifier, fill_tree(variables, network | loaded))
    if is_first_process():
        record = {"source": settings.init_from, "digest": _digest(arrays)}
        _report(assignment, len(network), record, folder)


def began_with(source: str, folder: Path) -> bool | None:
    """Whether phase I began with the arrays of a source, as `init_from.json` records it.

    The path of a source may change. If it is missing, nothing can differ, which logs a warning: the
    parameters are in the checkpoints. A source that has been replaced at its path differs, unless
    it is a folder, in which training may have gone on.

    Args:
      source: `config.phase_one.init_from`, not "".
      folder: folder of phase I.

    Returns:
      None if the folder has no record, or the record of an earlier version.

    Raises:
      InputError: the source exists and cannot be read.
    """
    record = read_json_or_none(folder / RECORD, "the initial parameters are not compared") or {}
    if "digest" not in record:
        return None
    path = local_path(_FIELD, source)
    if not path.exists():
        _log.warning(
            "%s=%s: %s; the run continues without it", _FIELD, source, reason_missing(path)
        )
        return True
    if path.is_dir() and source == record["source"]:
        return True
    return _digest(_read(source)) == record["digest"]


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_init_from(classifier: nnx.Module, settings: PhaseOneConfig, folder: Path) -> None:
    """Checks that the arrays can be read and that some fit a network, which may be abstract.

    If fewer than half of the network's arrays are found, and a change of a prefix gives more, the
    log has the `init_from_map` of it.

    Raises:
      MissingFileError: the source does not exist.
      InputError: it is of another kind, an expression matches no name, or no array fits.
    """
    if settings.init_from and not _has_begun(folder):
        variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
        network, arrays = named_arrays(variables), _read(settings.init_from)
        assignment, _ = assign(network, arrays, settings)
        if len(assignment.loaded) < len(network) / 2:
            _advise(network, arrays, len(assignment.loaded), settings)


def assign(
    network: Mapping[str, Any], arrays: Mapping[str, np.ndarray], settings: PhaseOneConfig
) -> tuple[Assignment, dict[str, np.ndarray]]:
    """Finds the source of each array of a network.

    Args:
      network: arrays, which may be abstract, by name.
      arrays: arrays of the source, by name.
      settings: its `init_from_map` is applied to the names of the source.

    Returns:
      The assignment, and the arrays to load by name in the network.

    Raises:
      InputError: an expression matches no name, two arrays get one name, no array fits, an array
        has another layout than its name says, or is not finite.
    """
    sources = _renamed(arrays, settings.init_from_map)
    renamed = {name: arrays[source] for name, source in sources.items()}
    names = _found(network, renamed)
    found = {n: _arranged(n, name, renamed[name]) for n, name in names.items()}
    differ = {n: text for n, x in found.items() if (text := _difference(x, network[n]))}
    for n in (n for n in differ if found[n].shape != network[n].shape):
        _check_layout(n, sources[names[n]], renamed[names[n]], network[n])
    loaded = {n: x for n, x in found.items() if n not in differ}
    if not loaded:
        raise _nothing_fits(network, renamed, differ, settings)
    for n, x in loaded.items():
        if not np.isfinite(x).all():
            raise InputError(
                f"{_FIELD}={settings.init_from}: {sources[names[n]]} has values that are not "
                "finite; expected finite parameters"
            )
    used = set(names.values())
    assignment = Assignment(
        loaded={n: sources[names[n]] for n in loaded},
        not_loaded=[n for n in network if n not in found],
        shapes_differ=differ,
        not_used=[source for name, source in sources.items() if name not in used],
        transposed=[n for n in loaded if _is_transposed(n, names[n])],
    )
    return assignment, loaded


def _found(network: Iterable[str], sources: Mapping[str, Any]) -> dict[str, str]:
    """Names in the network -> names of their sources, after `init_from_map`."""
    found = {}
    for name in network:
        for candidate in (name, pytorch_name(name)):
            if candidate in sources:
                found[name] = candidate
                break
    return found


def _is_transposed(name: str, source: str) -> bool:
    """Whether an array has PyTorch's name, and thus another order of axes."""
    return source != name and transposes(name)


def _arranged(name: str, source: str, x: np.ndarray) -> np.ndarray:
    """An array of the source in the network's order of axes."""
    return x.transpose(kernel_axes(x.ndim)) if _is_transposed(name, source) else x


def _check_layout(name: str, source: str, x: np.ndarray, expected: Any) -> None:
    """Raises an `InputError` if an array fits in the other layout than its name says."""
    if not transposes(name) or x.ndim < 2:
        return
    in_pytorch_layout = x.transpose(kernel_axes(x.ndim)).shape == expected.shape
    if not in_pytorch_layout and x.shape != expected.shape:
        return
    found, advice = (
        ("PyTorch's layout", "leave its last part `weight`, so that it is transposed")
        if in_pytorch_layout
        else ("the layout of Flax", "rename `weight` to `kernel`, so that it is not transposed")
    )
    raise InputError(
        f"{_FIELD}: {source} {x.shape} for {name} {tuple(expected.shape)} has {found}; with "
        f"{_FIELD}_map, {advice}"
    )


def _nothing_fits(
    network: Mapping[str, Any],
    sources: Mapping[str, np.ndarray],
    differ: Mapping[str, str],
    settings: PhaseOneConfig,
) -> InputError:
    available = [f"{name} {x.shape}" for name, x in sources.items()]
    expected = [f"{name} {tuple(x.shape)}" for name, x in network.items()]
    suggestion = suggested_map(network, sources, settings.init_from_map)
    return InputError(
        f"{_FIELD}={settings.init_from}: none of its {len(sources)} arrays fits the network. "
        f"Names there, after init_from_map: {_some(available)}; in the network: "
        f"{_some(expected)}; shapes that differ: {_some(differ)}. Set {_FIELD}_map"
        + (f"='{suggestion}'" if suggestion else "")
    )


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
        raise MissingFileError(f"{_FIELD}={source}: {reason_missing(path)}")
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


def _advise(
    network: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    num_loaded: int,
    settings: PhaseOneConfig,
) -> None:
    """Logs the change of a prefix that would load more arrays."""
    renamed = {n: arrays[source] for n, source in _renamed(arrays, settings.init_from_map).items()}
    if suggestion := suggested_map(network, renamed, settings.init_from_map):
        _log.warning(
            "%s=%s gives %d of %d arrays of the network; more fit with %s_map='%s'",
            *(_FIELD, settings.init_from, num_loaded, len(network), _FIELD, suggestion),
        )


def _has_begun(folder: Path) -> bool:
    """Whether phase I resumes from a checkpoint."""
    return any(has_readable_checkpoint(path) for path in (folder, folder / "partial"))


def _report(assignment: Assignment, size: int, origin: Mapping[str, str], folder: Path) -> None:
    record, count = folder / RECORD, len(assignment.loaded)
    write_json(record, {**origin, **dataclasses.asdict(assignment)})
    _log.info("phase_one: %d of %d arrays are from %s", count, size, origin["source"])
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
