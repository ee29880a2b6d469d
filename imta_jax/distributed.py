"""Which device holds what: the only file that decides shardings.

One device is a mesh of one. Batches are split over the whole mesh. Parameters and the optimiser's
state are on every device or, to save memory, split over the mesh's second axis; the compiler
inserts what has to travel.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imta_jax.errors import InputError

Tree = TypeVar("Tree")
Result = TypeVar("Result")

DATA_AXIS, PARAMETER_AXIS = "data", "parameters"
_BOTH_AXES = (DATA_AXIS, PARAMETER_AXIS)


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
        raise InputError(
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


def first_process_first(load: Callable[[], Result]) -> Result:
    """Lets the first process do alone what leaves files for the others to find, then the others.

    An error of the first is raised there, and the others are told of it by the runtime.
    """
    if jax.process_count() == 1:
        return load()
    if is_first_process():
        loaded = load()
        wait_for_all("the first process has loaded")
        return loaded
    wait_for_all("the first process has loaded")
    return load()


def gather(tree: Tree) -> Tree:
    """Arrays split over their leading axis, whole and as NumPy in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def data_mesh(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    *,
    parameter_shards: int = 1,
) -> Mesh:
    """A mesh with the axes "data" and "parameters", over the given devices; default, all there are.

    Args:
      devices: of all processes.
      parameter_shards: how many devices share one copy of the parameters and the optimiser's state.

    Raises:
      ValueError: a number of shards that does not divide the devices; names those that do.
    """
    devices = list(devices) if devices is not None else jax.devices()
    if parameter_shards < 1 or len(devices) % parameter_shards:
        valid = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"config.mesh.parameter_shards is {parameter_shards}, but there are {len(devices)}"
            f" devices: expected one of {', '.join(map(str, valid))}"
        )
    shape = (len(devices) // parameter_shards, parameter_shards)
    return jax.make_mesh(shape, _BOTH_AXES, (AxisType.Auto, AxisType.Auto), devices=devices)


def is_one_processor(mesh: Mesh) -> bool:
    """Whether a program for the mesh is run by the cores of one host and nothing else."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of metrics and of all that is small: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """The sharding of a parameter or of its momentum: its largest axis that divides is split.

    One that does not divide, or a mesh that has one copy on every device, leaves it whole.
    """
    shards = mesh.shape[PARAMETER_AXIS]
    able = [i for i, size in enumerate(shape) if size >= shards and size % shards == 0]
    if shards == 1 or not able:
        return replicated(mesh)
    largest = max(able, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, PARAMETER_AXIS))


def split_over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis split evenly."""
    return NamedSharding(mesh, PartitionSpec(_BOTH_AXES))


def split_batches(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches [S, N, ...]: each split evenly."""
    return NamedSharding(mesh, PartitionSpec(None, _BOTH_AXES))


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts a host batch (a pytree of NumPy arrays [N, ...]) on the devices, split over N.

    Of several processes each gives its rows.
    """
    return _place(batch, split_over_batch(mesh))


def place_rows(rows: Tree, mesh: Mesh) -> Tree:
    """As `place_batch`, for what tells of several batches [S, N, ...]; scalars go everywhere."""
    split, whole = split_batches(mesh), replicated(mesh)
    return jax.tree.map(lambda x: _place(x, split if np.ndim(x) else whole), rows)


def process_shard() -> tuple[int, int]:
    """Which of how many processes this is: (index, count)."""
    return jax.process_index(), jax.process_count()


def place_once(tree: Tree, mesh: Mesh) -> Tree:
    """Puts host arrays, the same in every process, whole on every device."""
    return _place(tree, replicated(mesh))


def _place(tree: Tree, sharding: NamedSharding) -> Tree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a pytree to every device of the mesh; the copy shares no buffer with the original."""
    return _copy(tree, lambda shape: replicated(mesh))


def place_parameters(tree: Tree, mesh: Mesh) -> Tree:
    """Copies parameters, or what has their shapes, to where `parameter_sharding` wants them."""
    return _copy(tree, lambda shape: parameter_sharding(mesh, shape))


def _copy(tree: Tree, sharding: Callable[[Sequence[int]], NamedSharding]) -> Tree:
    # Through the host: a device_put onto the device an array is on already would alias it, and a
    # step that donates its state would then delete the network's own arrays.
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding(np.shape(x))), tree)


def check_batch_size(batch_size: int, mesh: Mesh, field: str, parts: int = 1) -> None:
    """Refuses a batch that the devices do not divide.

    Args:
      batch_size: global, over all devices.
      mesh: the devices.
      field: the config field it comes from; opens the message.
      parts: that each device does one after the other.

    Raises:
      ValueError: with the nearest sizes that work.
    """
    devices = mesh.size * parts
    over = f"{mesh.size} devices" + (f" and {parts} parts" if parts > 1 else "")
    if batch_size >= 1 and batch_size % devices == 0:
        return
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    nearest = " or ".join(str(size) for size in (below, above) if size > 0) or str(devices)
    raise InputError(
        f"{field}={batch_size} does not divide over {over}; the nearest that do: {nearest}"
    )
