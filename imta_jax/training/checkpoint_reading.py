"""Reads a phase's checkpoints after training: selects one and restores its network.

Whether a checkpoint is complete is verified by reading it into host memory, without devices, and
once per process as long as its files do not change.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from imta_jax.config import Checkpoint
from imta_jax.errors import InputError, MissingFileError, StorageError, unknown_name
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.agreement import from_first_process, raise_in_all_processes
from imta_jax.training.checkpoint_checksums import check_checksums
from imta_jax.training.checkpoint_manager import ARRAY_ITEMS, open_manager
from imta_jax.training.checkpoints import (
    NewerFormatError,
    check_same_network,
    read_json_meta,
    restore_target,
    warn_of_damage,
)
from imta_jax.training.example_logits import check_example_logits
from imta_jax.training.state import fill_tree, named_arrays

# Names, sizes and times of a checkpoint's files -> why it cannot be read; "" if it can be.
_Files = tuple[tuple[str, int, int], ...]
_verified: dict[_Files, str] = {}


def has_readable_epoch(folder: Path, epoch: int) -> bool:
    """Whether `folder` holds a readable checkpoint of this epoch or a later one."""
    if not folder.is_dir():
        return False
    with open_manager(folder) as manager:
        newest = manager.latest_step() or 0
        return newest >= epoch and not _damage(manager, newest)


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, which may be damaged."""
    if not folder.is_dir():
        return False
    with open_manager(folder) as manager:
        return bool(manager.all_steps())


def has_readable_checkpoint(folder: Path) -> bool:
    """Whether `read_meta` and `restore_model` find a checkpoint in `folder`."""
    if not folder.is_dir():
        return False
    with open_manager(folder) as manager:
        epochs = sorted(manager.all_steps(), reverse=True)
        return any(not _damage(manager, epoch) for epoch in epochs)


def read_meta(folder: Path, which: str = "last") -> dict[str, Any]:
    """The `meta` of a checkpoint.

    Args:
      folder: a phase's folder.
      which: "last", or "best" on validation images. A damaged checkpoint is replaced by the newest
        readable one, with a warning.

    Raises:
      MissingFileError: there is no readable checkpoint.
    """
    with _open_existing(folder) as manager:
        return read_json_meta(manager, _choose(manager, which))


def restore_model(classifier: MultiExitClassifier, folder: Path, which: str = "last") -> int:
    """Restores a classifier in place, with the shardings of its arrays.

    Args:
      classifier: classifier of the network that was trained.
      folder: a phase's folder.
      which: see `read_meta`.

    Returns:
      The checkpoint's epoch.

    Raises:
      MissingFileError: there is no readable checkpoint.
      AnotherNetworkError: names or shapes differ, and the message lists them; or code from outside
        the package computes other logits than when the checkpoint was saved.
    """
    variables = nnx.state(classifier)
    expected = named_arrays(variables)
    with _open_existing(folder) as manager:
        epoch = _choose(manager, which)
        check_same_network(manager, epoch, "model", expected)
        target = ocp.args.StandardRestore(restore_target(expected))
        restored = manager.restore(epoch, args=ocp.args.Composite(model=target))["model"]
        meta = read_json_meta(manager, epoch)
    nnx.update(classifier, fill_tree(variables, restored))
    check_example_logits(classifier, meta, f"checkpoint {epoch} in {folder}")
    return epoch


def check_same_epoch(epoch: int, folder: Path) -> None:
    """Checks that all processes have restored the same checkpoint; all must call it.

    Raises:
      StorageError: they have not, for example because one of them cannot read the newest.
    """
    first, error = from_first_process(epoch), None
    if epoch != first:
        error = StorageError(
            errno.EIO,
            f"{folder}: process {jax.process_index()} reads checkpoint {epoch}, but process 0"
            f" checkpoint {first}; expected a file system on which all processes read the same",
        )
    raise_in_all_processes(error)


def read_model_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a network by name, as NumPy arrays.

    Args:
      folder: a phase's folder, whose newest readable checkpoint is read, or a checkpoint in it.

    Raises:
      MissingFileError: there is no readable checkpoint.
    """
    epoch = int(folder.name) if folder.name.isdigit() else None
    with _open_existing(folder if epoch is None else folder.parent) as manager:
        name = _choose(manager, "last") if epoch is None else epoch
        if name not in manager.all_steps():
            raise _missing(folder)
        if damage := _damage(manager, name):
            raise _unreadable(folder, {name: damage})
        target = ocp.args.StandardRestore(_host_arrays(manager, name, "model"))
        return manager.restore(name, args=ocp.args.Composite(model=target))["model"]


def _host_arrays(manager: ocp.CheckpointManager, epoch: int, item: str) -> dict[str, np.ndarray]:
    """NumPy arrays for an item of a checkpoint to be restored to."""
    stored = getattr(manager.item_metadata(epoch), item)
    return {name: np.empty(x.shape, x.dtype) for name, x in stored.items()}


def check_which(field: str, which: str) -> None:
    """Raises a ValueError that names `field` unless `which` is "last" or "best"."""
    if which not in get_args(Checkpoint):
        raise unknown_name(field, which, get_args(Checkpoint))


def _open_existing(folder: Path) -> ocp.CheckpointManager:
    if not folder.is_dir():
        raise _missing(folder)
    return open_manager(folder)


def _missing(folder: Path) -> MissingFileError:
    phases = [folder / name for name in ("phase_two", "phase_one") if (folder / name).is_dir()]
    if phases:
        return MissingFileError(
            f"no checkpoint in {folder}, the folder of a run; expected the folder of a phase: "
            f"{' or '.join(map(str, phases))}"
        )
    return MissingFileError(
        f"no checkpoint in {folder}; train it first: python launch.py --config=... --workdir=..."
    )


def _choose(manager: ocp.CheckpointManager, which: str) -> int:
    """The last or best checkpoint; if it cannot be read, the newest readable one."""
    check_which("checkpoint", which)
    epochs = sorted(manager.all_steps(), reverse=True)
    best = manager.best_step() if which == "best" else None
    if best is not None:
        epochs.insert(0, best)
    damages = {}
    for epoch in epochs:
        damages[epoch] = _damage(manager, epoch)
        if not damages[epoch]:
            return epoch
    folder = Path(manager.directory)
    raise _unreadable(folder, damages) if damages else _missing(folder)


def _unreadable(folder: Path, damages: Mapping[int, str]) -> MissingFileError:
    """The error for a folder whose checkpoints, by epoch, are all damaged."""
    reasons = "; ".join(f"checkpoint {epoch}: {damage}" for epoch, damage in damages.items())
    return MissingFileError(
        f"no readable checkpoint in {folder} ({reasons}); restore the folder from a copy, or train"
        " it again: python launch.py --config=... --workdir=..."
    )


def _damage(manager: ocp.CheckpointManager, epoch: int) -> str:
    """Why a checkpoint cannot be read; "" if it can be.

    All files are read, because a truncated checkpoint still has its folder and name.
    """
    files = _files_of(Path(manager.directory) / str(epoch))
    if files not in _verified:
        try:
            _read_to_host(manager, epoch)
        except NewerFormatError:
            raise
        except Exception as error:  # Orbax raises many types for damage.
            _verified[files] = warn_of_damage(manager, epoch, error)
        else:
            _verified[files] = ""
    return _verified[files]


def _files_of(folder: Path) -> _Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (folder, *paths))


def _read_to_host(manager: ocp.CheckpointManager, epoch: int) -> None:
    """Reads everything into NumPy arrays: devices may be too small for one unsharded copy."""
    check_checksums(manager.directory / str(epoch))
    read_json_meta(manager, epoch)
    # Orbax reads these files only when it restores to devices.
    for path in (Path(manager.directory) / str(epoch)).glob("*/array_metadatas/*"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error})") from error
    targets = {
        item: ocp.args.StandardRestore(_host_arrays(manager, epoch, item)) for item in ARRAY_ITEMS
    }
    manager.restore(epoch, args=ocp.args.Composite(**targets))
