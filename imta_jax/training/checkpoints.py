"""Checkpoints of a phase: saving them, and restoring a training state.

A checkpoint has three items: the network (`model`), the optimizer and step (`progress`), and a JSON
`meta` from which the network can be rebuilt. With a moving average (`averaging`), `model` is the
average, which is what is evaluated, and `progress` has the values that training continues from.
Arrays are stored under readable names, so that the error for a checkpoint of another network lists
the names that differ.

`meta` has the `format_version` of the checkpoint. A change of names or of `meta` that older code
cannot read increases `FORMAT_VERSION`, and `read_json_meta` converts older versions.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from imta_jax.distributed import gather, is_first_process
from imta_jax.errors import InputError
from imta_jax.runtime.agreement import (
    from_first_process,
    run_in_first_process,
    true_in_all_processes,
)
from imta_jax.runtime.files import create_folder
from imta_jax.runtime.write_errors import storage_errors_as_os_errors
from imta_jax.training.averaging import evaluated_parts, statistics_of, with_statistics
from imta_jax.training.checkpoint_checksums import check_checksums, write_checksums
from imta_jax.training.checkpoint_manager import SELECTION_METRIC, open_manager
from imta_jax.training.network_arrays import AnotherNetworkError, name_differences
from imta_jax.training.recipe import AnotherRecipeError, check_same_recipe
from imta_jax.training.state import Average, TrainState, fill_tree, named_arrays

_log = logging.getLogger(__name__)

# Checkpoints without the entry are of version 1.
FORMAT_VERSION = 1


class NewerFormatError(InputError):
    """A checkpoint was written by a newer version of this package."""


class CheckpointStore:
    """The checkpoints of a phase; use it as a context manager, which waits for saves.

    With several processes, process 0 writes the checkpoints and all processes read them. An error
    of a save is raised in all of them, so that all continue or all stop.

    Args:
      folder: created if it does not exist.
      keep_best: whether the best checkpoint is kept in addition to the two newest.
    """

    def __init__(self, folder: Path, keep_best: bool = True):
        self.folder, self._keep_best = folder, keep_best
        self._saving = 0  # name of the checkpoint that is being saved

    def __enter__(self) -> Self:
        run_in_first_process(lambda: create_folder(self.folder))
        self._manager = open_manager(self.folder, self._keep_best, self._write_checksums)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with contextlib.closing(self._manager):
                self.wait()
            return
        # Other processes may have no error, so that this one must not wait for them. A background
        # save may have failed too; the error that is being raised is the cause.
        with contextlib.suppress(Exception):
            self._manager.close()

    def save(
        self, name: int, state: TrainState, meta: Mapping[str, Any], validation_top1: float
    ) -> None:
        """Starts to save in the background.

        Args:
          name: the epoch, from 1, or the step of a checkpoint within an epoch.
          state: what is saved.
          meta: JSON values from which the network is rebuilt.
          validation_top1: validation accuracy in percent, which selects the best checkpoint.

        Raises:
          OSError: the storage fails.
        """
        meta = {**meta, "format_version": FORMAT_VERSION}
        arrays = _arrays(state)
        if jax.process_count() > 1:
            arrays = {item: _first_process_copies(named) for item, named in arrays.items()}
        items = {item: ocp.args.StandardSave(named) for item, named in arrays.items()}

        def start_to_save() -> None:
            self._manager.save(
                name,
                args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items),
                metrics={SELECTION_METRIC: float(validation_top1)},
            )

        self._saving = name
        self._run(start_to_save)

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          OSError: the storage failed.
        """
        if self._saving:
            self._run(self._manager.wait_until_finished)
            self._saving = 0

    def _run(self, action: Callable[[], None]) -> None:
        """Runs a part of a save in process 0. After a failure, nothing is being saved."""

        def raise_os_errors() -> None:
            try:
                with storage_errors_as_os_errors():
                    action()
            except BaseException:
                for folder in self._temporary_folders():  # It can fill the disk.
                    shutil.rmtree(folder, ignore_errors=True)
                raise

        try:
            run_in_first_process(raise_os_errors)
        except BaseException:
            self._saving = 0
            raise

    def _write_checksums(self) -> None:
        for folder in self._temporary_folders():
            write_checksums(folder)

    def _temporary_folders(self) -> list[Path]:
        """The folder of the checkpoint that is being saved, before Orbax renames it."""
        return list(Path(self._manager.directory).glob(f"{self._saving}.orbax-checkpoint-tmp*"))

    def newest(self) -> int:
        """The name of the newest checkpoint; 0 if there is none."""
        return from_first_process(self._manager.latest_step() or 0)

    def delete_after(self, name: int) -> None:
        """Deletes newer checkpoints. Orbax saves no checkpoint that is older than its newest."""

        def delete() -> None:
            for later in [step for step in self._manager.all_steps() if step > name]:
                self._manager.delete(later)

        run_in_first_process(delete)

    def meta(self, name: int) -> dict[str, Any]:
        """The `meta` of a checkpoint."""
        return read_json_meta(self._manager, name)

    def restore_latest(
        self, state: TrainState, recipe: Mapping[str, Any] | None = None
    ) -> tuple[TrainState, int]:
        """Restores the newest checkpoint that can be read, with the shardings of `state`.

        A damaged checkpoint is renamed, with a warning, and the next older one is tried.

        Args:
          state: state of the same network and optimizer.
          recipe: return value of `recipe_record` that the checkpoint must have; None for no check.

        Returns:
          The restored state and the checkpoint's name; `state` and 0 if there is none.

        Raises:
          AnotherNetworkError: the checkpoint is of another network.
          AnotherRecipeError: it was trained with another optimizer, schedule or average.
          NewerFormatError: the checkpoint is of a newer version.
        """
        for name in from_first_process(sorted(self._manager.all_steps(), reverse=True)):
            restored, error = self._try_to_restore(name, state, recipe)
            in_all = true_in_all_processes(restored is not None)
            if in_all and restored is not None:
                return restored, name
            error = error or OSError("another process cannot read it")
            warn_of_damage(self._manager, name, error)
            _rename_damaged(self._manager, name)
        return state, 0

    def _try_to_restore(
        self, name: int, state: TrainState, recipe: Mapping[str, Any] | None
    ) -> tuple[TrainState | None, Exception | None]:
        """The restored state, or why this process cannot read the checkpoint."""
        try:
            return self._restore(name, state, recipe), None
        except (AnotherNetworkError, AnotherRecipeError, NewerFormatError):
            raise
        except Exception as error:  # Orbax raises many types for damage.
            return None, error

    def _restore(
        self, name: int, state: TrainState, recipe: Mapping[str, Any] | None
    ) -> TrainState:
        check_checksums(self._manager.directory / str(name))
        meta = read_json_meta(self._manager, name)
        if recipe is not None:
            check_same_recipe(meta, recipe, f"checkpoint {name} in {self._manager.directory}")
        expected = _arrays(state)
        for item, arrays in expected.items():
            check_same_network(self._manager, name, item, arrays)
        targets = {
            item: ocp.args.StandardRestore(restore_target(arrays))
            for item, arrays in expected.items()
        }
        items = self._manager.restore(name, args=ocp.args.Composite(**targets))
        progress = fill_tree(_progress(state), items["progress"])
        trainable, rest = (fill_tree(part, items["model"]) for part in evaluated_parts(state))
        restored = dataclasses.replace(
            state,
            step=progress["step"],
            opt_state=progress["optimizer"],
            extra=progress["extra"],
            trainable=trainable,
            rest=rest,
        )
        if state.average is None:
            return restored
        values = progress["not_averaged"]
        return dataclasses.replace(
            restored,
            trainable=values["trainable"],
            rest=with_statistics(rest, values["statistics"]),
            average=Average(trainable, statistics_of(rest)),
        )


def _arrays(state: TrainState) -> dict[str, dict[str, jax.Array]]:
    """The named arrays of each item of a checkpoint."""
    trainable, rest = evaluated_parts(state)
    model = named_arrays(trainable) | named_arrays(rest)
    return {"model": model, "progress": named_arrays(_progress(state))}


def _first_process_copies(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies of arrays on the host of process 0; empty arrays in the other processes.

    All processes must call it: shards of other processes are gathered, one array at a time.
    """
    copies = {}
    for name, array in arrays.items():
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            replicated = array.is_fully_replicated
            array = array.addressable_data(0) if replicated else gather(array)
        copies[name] = np.array(array) if is_first_process() else np.empty(0)
    return copies


def _progress(state: TrainState) -> dict[str, Any]:
    # None has no arrays: checkpoints without extra state are those of earlier versions.
    progress = {"step": state.step, "optimizer": state.opt_state, "extra": state.extra}
    if state.average is None:
        return progress
    values = {"trainable": state.trainable, "statistics": statistics_of(state.rest)}
    return {**progress, "not_averaged": values}


def restore_target(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The target of a restore: JAX arrays keep their shardings, NumPy arrays stay on the host."""
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        if isinstance(x, jax.Array)
        else x
        for name, x in arrays.items()
    }


def read_json_meta(manager: ocp.CheckpointManager, name: int) -> dict[str, Any]:
    """The `meta` of a checkpoint.

    Raises:
      NewerFormatError: it is of a newer format.
    """
    restored: Any = manager.restore(name, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    if not isinstance(restored.meta, dict):
        raise InputError(f"meta/metadata must hold a JSON object; found {restored.meta!r:.40}")
    version = restored.meta.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"checkpoint {name} in {manager.directory} has format_version {version}; expected at"
            f" most {FORMAT_VERSION}: use the newer version of imta_jax that wrote it"
        )
    return {**restored.meta, "format_version": version}


def check_same_network(
    manager: ocp.CheckpointManager, name: int, item: str, expected: Mapping[str, Any]
) -> None:
    """Compares the names and shapes of a checkpoint's item with those of a network.

    Raises:
      AnotherNetworkError: they differ; the message lists the first 20 differences.
    """
    lines = list(name_differences(expected, getattr(manager.item_metadata(name), item)))
    if lines:
        listed = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise AnotherNetworkError(
            f"the checkpoint of epoch {name} in {manager.directory} is of another network "
            f"({len(lines)} differences); use the config and code it was trained with, or another "
            "--workdir:\n  " + "\n  ".join(listed)
        )


def warn_of_damage(manager: ocp.CheckpointManager, name: int, error: Exception) -> str:
    """Logs that a checkpoint cannot be read; returns the reason."""
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    _log.warning(
        "checkpoint %d in %s cannot be read (%s); trying an older one",
        name,
        manager.directory,
        reason,
    )
    return reason


def _rename_damaged(manager: ocp.CheckpointManager, name: int) -> None:
    """Renames a damaged checkpoint, so that its epoch can be saved again.

    It is not deleted, because the storage may be at fault and not the checkpoint.
    """
    source = Path(manager.directory) / str(name)
    count = len(list(source.parent.glob(f"unreadable_{name}_*")))
    target = source.with_name(f"unreadable_{name}_{count + 1}")
    run_in_first_process(lambda: source.rename(target))
    manager.reload()
