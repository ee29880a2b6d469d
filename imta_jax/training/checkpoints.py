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
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from imta_jax.distributed import is_first_process, wait_for_all
from imta_jax.errors import InputError
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

    Args:
      folder: created if it does not exist.
      keep_best: whether the best checkpoint is kept in addition to the two newest.
    """

    def __init__(self, folder: Path, keep_best: bool = True):
        self.folder, self._keep_best = folder, keep_best
        self._saving = 0  # name of the checkpoint that is being saved

    def __enter__(self) -> Self:
        self._manager = open_manager(self.folder, self._keep_best)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A background save may have failed too; the error that is being raised is the cause.
        if error and self._manager.blocks_others():
            return  # closing would wait for processes that wait for this one
        tolerated = contextlib.suppress(Exception) if error else contextlib.nullcontext()
        with tolerated, contextlib.closing(self._manager):
            self.wait()

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
        items = {item: ocp.args.StandardSave(arrays) for item, arrays in _arrays(state).items()}
        self._manager.failure = None
        with storage_errors_as_os_errors():
            self._manager.save(
                name,
                args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items),
                metrics={SELECTION_METRIC: float(validation_top1)},
            )
        self._saving = name

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          OSError: the storage failed.
        """
        name, self._saving = self._saving, 0  # 0 after a failure, too
        with storage_errors_as_os_errors():
            self._manager.wait_for_own_save()
            self._manager.wait_until_finished()
        if name and is_first_process():
            write_checksums(self._manager.directory / str(name))

    def newest(self) -> int:
        """The name of the newest checkpoint; 0 if there is none."""
        return self._manager.latest_step() or 0

    def delete_after(self, name: int) -> None:
        """Deletes newer checkpoints. Orbax saves no checkpoint that is older than its newest."""
        for later in [step for step in self._manager.all_steps() if step > name]:
            self._manager.delete(later)

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
        for name in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(name, state, recipe), name
            except (AnotherNetworkError, AnotherRecipeError, NewerFormatError):
                raise
            except Exception as error:  # Orbax raises many types for damage.
                warn_of_damage(self._manager, name, error)
                _rename_damaged(self._manager, name)
        return state, 0

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
    wait_for_all(f"{source} is unreadable")
    if is_first_process():
        source.rename(source.with_name(f"unreadable_{name}_{count + 1}"))
    wait_for_all(f"{source} is renamed")
    manager.reload()
