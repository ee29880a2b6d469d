"""Orbax's manager of a folder of checkpoints."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from imta_jax.errors import InputError
from imta_jax.runtime.background_errors import ignore_errors_of_failed_reads

SELECTION_METRIC = "validation_top1"
ARRAY_ITEMS = ("model", "progress")
_POLL_SECONDS = 0.01


class Manager(ocp.CheckpointManager):
    """Orbax's manager without its own preemption handling, and with errors of one process.

    Orbax would use the numbers of checkpoints as JAX's sync points. The loop uses sync points of
    its own, and decides what to save.

    Attributes:
      failure: the error of the last save in this process.
    """

    failure: BaseException | None = None

    def reached_preemption(self, step: int) -> bool:
        """Always False."""
        return False

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise

    def wait_for_own_save(self) -> None:
        """Raises an error of this process's save without waiting for other processes.

        Orbax would first wait for them. They wait for this process, until the timeout of 10 minutes
        ends all of them.
        """
        while jax.process_count() > 1 and self.is_saving_in_progress():
            if self.failure is not None:
                raise self.failure
            time.sleep(_POLL_SECONDS)

    def blocks_others(self) -> bool:
        """Whether a save failed in this process for which other processes may wait."""
        return jax.process_count() > 1 and self.failure is not None


def open_manager(folder: Path, keep_best: bool = True, create: bool = True) -> Manager:
    """Opens a folder of checkpoints.

    With several processes, all must open the same folders in the same order.

    Args:
      folder: absolute or relative path.
      keep_best: whether saving also keeps the best checkpoint, in addition to the two newest.
      create: whether the folder is created if it does not exist. False for reading.
    """
    # Orbax's own option for the best would delete the newest, which training resumes from.
    policies: list[Any] = [checkpoint_managers.LatestN(2)]
    if keep_best:
        policies.append(
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[SELECTION_METRIC], n=1)
        )
    options = ocp.CheckpointManagerOptions(
        # Orbax's `read_only` would log a warning each time a folder is opened.
        create=create,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=lambda metrics: metrics[SELECTION_METRIC],
        # Two managers are open at once. Without a prefix, their barriers would have equal names.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix="/".join(folder.parts[-2:])
        ),
    )
    handlers: dict[str, Any] = {item: ocp.StandardCheckpointHandler() for item in ARRAY_ITEMS}
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


def _damaged_metrics(folder: Path) -> list[str]:
    """The folders of metrics that are not JSON."""
    damaged = []
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, OSError):
            damaged.append(str(path.parent))
    return damaged
