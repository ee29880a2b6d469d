"""Checkpoints of a phase: what is written after an epoch, and how it is found again.

A checkpoint holds the network (`model`), the optimiser and step (`progress`), and a JSON `meta`
that describes the network well enough to rebuild it. Arrays are stored under readable names, so
that a checkpoint of another network can be refused with the names that differ.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from imta_jax.distributed import is_first_process, wait_for_all
from imta_jax.errors import unknown_name
from imta_jax.runtime.write_errors import storage_errors_as_os_errors
from imta_jax.training.packing import packed_like, unpacked
from imta_jax.training.state import TrainState, named_arrays

_log = logging.getLogger(__name__)

SELECTION_METRIC = "validation_top1"
# Which checkpoint of a phase is asked for; the best is chosen on validation images.
WHICH = ("last", "best")


class AnotherNetworkError(ValueError):
    """A checkpoint whose arrays are not those of the network it was to fill."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask whether to stop.

    It would ask by the names of checkpoints, epochs among them; of processes that had last asked
    for epoch 2, when one was told, all agreed to stop at step 3, which was over.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks, and says what to save."""
        return False


def _manager(folder: Path, keep_best: bool = True) -> ocp.CheckpointManager:
    """Keeps the newest checkpoints and, if asked to, the best by validation."""
    # A keep-best option alone would delete the newest, and going on would start from the best.
    policies = [checkpoint_managers.LatestN(2)]
    if keep_best:
        policies.append(
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[SELECTION_METRIC], n=1)
        )
    keep = checkpoint_managers.AnyPreservationPolicy(policies)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep, best_fn=lambda metrics: metrics[SELECTION_METRIC]
    )
    handlers = {
        "model": ocp.StandardCheckpointHandler(),
        "progress": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return _Manager(folder.resolve(), options=options, item_handlers=handlers)


def _arrays(state: TrainState) -> dict[str, dict[str, jax.Array]]:
    model = named_arrays(state.trainable) | named_arrays(state.rest)
    progress = named_arrays({"step": state.step, "optimizer": state.opt_state})
    return {"model": model, "progress": progress}


def _refill(tree: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """Puts named arrays back into the pytree that they were flattened from."""
    leaves = [arrays[name] for name in named_arrays(tree)]
    whole = jax.tree.unflatten(jax.tree.structure(unpacked(tree)), leaves)
    return packed_like(whole, tree)


def _abstract(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be read: onto the devices where it lies there, else, of what is packed, NumPy."""
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        if isinstance(x, jax.Array)
        else x
        for name, x in arrays.items()
    }


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line per name that is missing, left over or of another shape."""
    lines = [f"not in the checkpoint: {name}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"not in this network: {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        ours, theirs = tuple(expected[name].shape), tuple(found[name].shape)
        if ours != theirs:
            lines.append(f"{name}: this network {ours}, the checkpoint {theirs}")
    return lines


def _refuse_another_network(
    manager: ocp.CheckpointManager, epoch: int, item: str, expected: Mapping[str, Any]
) -> None:
    """Raises an AnotherNetworkError unless the checkpoint's `item` has the expected arrays."""
    found = getattr(manager.item_metadata(epoch), item)
    lines = _differences(expected, found)
    if lines:
        shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise AnotherNetworkError(
            f"the checkpoint of epoch {epoch} in {manager.directory} is of another network "
            f"({len(lines)} differences); use the config it was trained with or another "
            "--workdir:\n  " + "\n  ".join(shown)
        )


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one phase; use as a context manager, so that saving is waited for.

    Attributes:
      folder: made if need be.
      keep_best: whether the best is kept, besides the two newest.
    """

    folder: Path
    keep_best: bool = True

    def __enter__(self) -> Self:
        self._manager = _manager(self.folder, self.keep_best)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Saving in the background may have failed too; the error that is on its way says more.
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self._manager.close()

    def wait(self) -> None:
        """Waits until all is saved, and raises what went wrong."""
        with storage_errors_as_os_errors():
            self._manager.wait_until_finished()

    def save(
        self, epoch: int, state: TrainState, meta: Mapping[str, Any], validation_top1: float
    ) -> None:
        """Starts saving in the background; `epoch` counts from 1 and names the checkpoint.

        Of checkpoints within epochs it is the step.
        """
        items = {name: ocp.args.StandardSave(arrays) for name, arrays in _arrays(state).items()}
        with storage_errors_as_os_errors():
            self._manager.save(
                epoch,
                args=ocp.args.Composite(meta=ocp.args.JsonSave(dict(meta)), **items),
                metrics={SELECTION_METRIC: float(validation_top1)},
            )

    def newest(self) -> int:
        """The name of the newest checkpoint, 0 where there is none."""
        return self._manager.latest_step() or 0

    def forget_after(self, epoch: int) -> None:
        """Deletes later checkpoints: a manager saves nothing that is older than its newest."""
        for later in [found for found in self._manager.all_steps() if found > epoch]:
            self._manager.delete(later)

    def meta(self, epoch: int) -> dict[str, Any]:
        """The JSON `meta` of a checkpoint."""
        return _meta(self._manager, epoch)

    def restore_latest(self, state: TrainState) -> tuple[TrainState, int]:
        """The newest state that can be read, and its epoch; (`state`, 0) where there is none.

        A damaged checkpoint is passed over with a warning, for the next older one.

        Raises:
          AnotherNetworkError: the checkpoint is of another network.
        """
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(epoch, state), epoch
            except AnotherNetworkError:
                raise
            except Exception as error:  # whatever damage does: orbax raises many kinds
                _warn_of_damage(self._manager, epoch, error)
                _set_aside(self._manager, epoch)
        return state, 0

    def _restore(self, epoch: int, state: TrainState) -> TrainState:
        expected = _arrays(state)
        for item, arrays in expected.items():
            _refuse_another_network(self._manager, epoch, item, arrays)
        targets = {
            item: ocp.args.StandardRestore(_abstract(arrays)) for item, arrays in expected.items()
        }
        found = self._manager.restore(epoch, args=ocp.args.Composite(**targets))
        progress = _refill({"step": state.step, "optimizer": state.opt_state}, found["progress"])
        return dataclasses.replace(
            state,
            step=progress["step"],
            opt_state=progress["optimizer"],
            trainable=_refill(state.trainable, found["model"]),
            rest=_refill(state.rest, found["model"]),
        )


def _warn_of_damage(manager: ocp.CheckpointManager, epoch: int, error: Exception) -> None:
    _log.warning(
        "checkpoint %d in %s cannot be read (%s: %s); trying an older one",
        epoch,
        manager.directory,
        type(error).__name__,
        str(error).partition("\n")[0][:200],
    )


def _set_aside(manager: ocp.CheckpointManager, epoch: int) -> None:
    """Renames an unreadable checkpoint, which would stand in the way when its epoch is saved again.

    It is not deleted: what cannot be read today may be a disk's fault and not the checkpoint's.
    """
    source = Path(manager.directory) / str(epoch)
    taken = len(list(source.parent.glob(f"unreadable_{epoch}_*")))
    wait_for_all(f"{source} is found unreadable")
    if is_first_process():
        source.rename(source.with_name(f"unreadable_{epoch}_{taken + 1}"))
    wait_for_all(f"{source} is set aside")
    manager.reload()


def has_readable_epoch(folder: Path, epoch: int) -> bool:
    """Whether `folder` holds a checkpoint of this epoch or a later one that can be read back."""
    if not folder.is_dir():
        return False
    with _manager(folder) as manager:
        newest = manager.latest_step() or 0
        return newest >= epoch and _is_readable(manager, newest)


def _is_readable(manager: ocp.CheckpointManager, epoch: int) -> bool:
    """Reads a whole checkpoint, since a truncated one still has its folder and its name."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        found = manager.item_metadata(epoch)
        targets = {
            item: {
                name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)
                for name, array in getattr(found, item).items()
            }
            for item in ("model", "progress")
        }
        items = {item: ocp.args.StandardRestore(target) for item, target in targets.items()}
        manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items))
    except Exception as error:  # whatever damage does: orbax raises many kinds
        _warn_of_damage(manager, epoch, error)
        return False
    return True


def check_which(field: str, which: str) -> None:
    """Raises a ValueError that opens with `field` unless `which` is a name in `WHICH`."""
    if which not in WHICH:
        raise unknown_name(field, which, WHICH)


def _chosen_epoch(manager: ocp.CheckpointManager, which: str) -> int:
    """The last or best epoch, or the newest other one that can be read."""
    check_which("checkpoint", which)
    epochs = sorted(manager.all_steps(), reverse=True)
    if epochs and which == "best":
        epochs.insert(0, manager.best_step())
    readable = next((epoch for epoch in epochs if _is_readable(manager, epoch)), None)
    if readable is None:
        raise FileNotFoundError(
            f"no {'readable ' if epochs else ''}checkpoint in {manager.directory}; train it "
            "first: python launch.py --config=... --workdir=..."
        )
    return readable


def read_meta(folder: Path, which: str = "last") -> dict[str, Any]:
    """The JSON `meta` of the last or best (by validation) checkpoint in `folder`.

    Raises:
      FileNotFoundError: no checkpoint there.
    """
    with _manager(folder) as manager:
        epoch = _chosen_epoch(manager, which)
        return _meta(manager, epoch)


def _meta(manager: ocp.CheckpointManager, epoch: int) -> dict[str, Any]:
    return dict(manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta)


def fill_named(classifier: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Fills a classifier in place from named arrays, those of `state.named_arrays`.

    Raises:
      AnotherNetworkError: the names or shapes differ; the message lists them.
    """
    variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
    lines = _differences(named_arrays(variables), arrays)
    if lines:
        raise AnotherNetworkError(
            f"these arrays are of another network ({len(lines)} differences):\n  "
            + "\n  ".join(lines[:20])
        )
    nnx.update(classifier, _refill(variables, {n: jnp.asarray(a) for n, a in arrays.items()}))


def restore_model(classifier: nnx.Module, folder: Path, which: str = "last") -> int:
    """Fills a classifier in place from the last or best checkpoint in `folder`; returns its epoch.

    Raises:
      FileNotFoundError: no checkpoint there.
      AnotherNetworkError: the names or shapes differ; the message lists them.
    """
    variables = nnx.state(classifier)
    expected = named_arrays(variables)
    with _manager(folder) as manager:
        epoch = _chosen_epoch(manager, which)
        _refuse_another_network(manager, epoch, "model", expected)
        target = ocp.args.StandardRestore(_abstract(expected))
        found = manager.restore(epoch, args=ocp.args.Composite(model=target))["model"]
    nnx.update(classifier, _refill(variables, found))
    return epoch
