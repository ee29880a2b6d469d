"""Which device holds what: the only file that decides shardings.

One device is a mesh of one. Batches are split over the mesh's single axis, everything else is on
every device; the compiler inserts the reductions.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

DATA_AXIS = "data"


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Makes this one of several processes that compute together; to be called before all else.

    Args:
      coordinator: host:port of process 0; None to find all three in the surroundings, as Cloud
        TPU, Slurm, Kubernetes and Open MPI leave them. Where there are none, it is alone.
      count: of processes.
      index: of this one, from 0.

    Raises:
      ValueError: some of the three are missing.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError(
            "of coordinator_address, num_processes and process_id all are needed, or none (they"
            f" are then found); found {coordinator}, {count}, {index}"
        )
    try:
        jax.distributed.initialize(coordinator, count, index)
    except ValueError:
        if any(given):
            raise


def is_first_process() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process is here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather(tree: Tree) -> Tree:
    """Arrays split over their leading axis, whole and as NumPy in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "data", over the given devices; default, all there are."""
    devices = list(devices) if devices is not None else jax.devices()
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters, optimiser state and metrics: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis split evenly."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def split_batches(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches [S, N, ...]: each split evenly."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts a host batch (a pytree of NumPy arrays [N, ...]) on the devices, split over N.

    Of several processes each gives its rows.
    """
    return _place(batch, split_over_batch(mesh))


def place_rows(rows: Tree, mesh: Mesh) -> Tree:
    """As `place_batch`, for what tells of several batches [S, N, ...]; scalars go everywhere."""
    split, whole = split_batches(mesh), replicated(mesh)
    return jax.tree.map(lambda x: _place(x, split if np.ndim(x) else whole), rows)


def process_share() -> tuple[int, int]:
    """Which of how many processes this is: (index, count)."""
    return jax.process_index(), jax.process_count()


def place_once(tree: Tree, mesh: Mesh) -> Tree:
    """Puts host arrays, the same in every process, whole on every device."""
    return _place(tree, replicated(mesh))


def _place(tree: Tree, sharding: NamedSharding) -> Tree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a pytree to every device of the mesh; the copy shares no buffer with the original."""
    sharding = replicated(mesh)

    # Through the host: a device_put onto the device an array is on already would alias it, and a
    # step that donates its state would then delete the network's own arrays.
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding), tree)


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Refuses a batch that the devices do not divide.

    Args:
      batch_size: global, over all devices.
      mesh: the devices.
      field: the config field it comes from; opens the message.

    Raises:
      ValueError: with the nearest sizes that work.
    """
    devices = mesh.size
    if batch_size >= 1 and batch_size % devices == 0:
        return
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    nearest = " or ".join(str(size) for size in (below, above) if size > 0) or str(devices)
    raise ValueError(
        f"{field}={batch_size} does not divide over {devices} devices; the nearest that do: "
        f"{nearest}"
    )
