"""Orbax's manager of a folder of checkpoints."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from imta_jax.errors import InputError
from imta_jax.runtime.background_errors import ignore_errors_of_failed_reads
from imta_jax.runtime.files import check_regular_file

SELECTION_METRIC = "validation_top1"
ARRAY_ITEMS = ("model", "progress")


class Manager(ocp.CheckpointManager):
    """Orbax's manager without its own preemption handling.

    Orbax would use the numbers of checkpoints as JAX's sync points. The loop uses sync points of
    its own, and decides what to save.
    """

    def reached_preemption(self, step: int) -> bool:
        """Always False."""
        return False


def open_manager(
    folder: Path, keep_best: bool = True, before_commit: Callable[[], None] | None = None
) -> Manager:
    """Opens a folder of checkpoints, which must exist before one is saved.

    The manager does not wait for other processes: Orbax's barriers would hold them up to 20 minutes
    if one process cannot read or write a file.

    Args:
      folder: absolute or relative path.
      keep_best: whether saving also keeps the best checkpoint, in addition to the two newest.
      before_commit: called in a background thread when the files of a checkpoint are written, but
        still in a temporary folder.

    Raises:
      InputError: metrics of a checkpoint are damaged.
      ExistingFileError: a checkpoint has a pipe, whose reading would block.
    """
    _check_regular_files(folder)
    # Orbax's own option for the best would delete the newest, which training resumes from.
    policies: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(2)]
    if keep_best:
        policies.append(
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[SELECTION_METRIC], n=1)
        )
    options = ocp.CheckpointManagerOptions(
        # Orbax's `read_only` would log a warning each time a folder is opened.
        create=False,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=lambda metrics: metrics[SELECTION_METRIC],
        async_options=ocp.options.AsyncOptions(
            post_finalization_callback=before_commit,
            # Otherwise, threads of a save wait for minutes for a folder that cannot be created.
            create_directories_asynchronously=False,
        ),
        multiprocessing_options=_only_this_process(),
    )
    handlers: dict[str, ocp.CheckpointHandler] = {
        item: ocp.StandardCheckpointHandler() for item in ARRAY_ITEMS
    }
    handlers["meta"] = ocp.JsonCheckpointHandler()
    ignore_errors_of_failed_reads()
    try:
        return Manager(folder.resolve(), options=options, item_handlers=handlers)
    except (ValueError, IsADirectoryError) as error:  # Orbax reads all metrics.
        damaged = _damaged_metrics(folder)
        if not damaged:
            raise
        raise InputError(
            f"{folder}: metrics of a checkpoint are damaged ({error}); delete them, which keeps the"
            f" checkpoint: {', '.join(damaged)}"
        ) from error


def _check_regular_files(folder: Path) -> None:
    """Checks the files of all checkpoints before Orbax opens them."""
    for path in folder.glob("[0-9]*/**/*"):
        if not path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # Another process may have deleted it.
                check_regular_file(path)


def _only_this_process() -> ocp.options.MultiprocessingOptions:
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _damaged_metrics(folder: Path) -> list[str]:
    """The folders of metrics that are not JSON."""
    damaged = []
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, OSError):
            damaged.append(str(path.parent))
    return damaged
