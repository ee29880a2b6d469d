"""Processes, meshes and shardings: the only module that decides where arrays are placed.

One device is a mesh of one. Batches are sharded over all devices. Parameters and the optimizer
state are replicated or, to save memory, sharded over the mesh's second axis. The compiler inserts
the communication.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imta_jax.errors import InputError
from imta_jax.runtime.agreement import run_in_all_processes, run_in_first_process
from imta_jax.runtime.joining import (
    check_kubernetes,
    check_port_is_free,
    is_single_slurm_task,
    join_advice,
    may_have_others,
    slurm_local_devices,
    slurm_warning,
    waiting_for,
)
from imta_jax.runtime.prng_keys import from_numbers, is_key

_log = logging.getLogger(__name__)

Tree = TypeVar("Tree")
Result = TypeVar("Result")

DATA_AXIS, PARAMETER_AXIS = "data", "parameters"
_BOTH_AXES = (DATA_AXIS, PARAMETER_AXIS)
# Networks with fewer bytes of parameters take more memory with shards than without, by the TPU
# compiler's report for the CIFAR networks: it gathers the parameters.
_FEW_PARAMETER_BYTES = 2**30


def join_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 60,
) -> None:
    """Makes this process one of several that compute together. Call it before other JAX functions.

    Args:
      coordinator: HOST:PORT of process 0. None detects all three values as Cloud TPU, Slurm,
        Kubernetes and Open MPI provide them; without them, the process is alone. One task of Slurm
        is alone too. One task per node uses all GPUs of its node; with `--gpus-per-task`, a task
        uses its own.
      count: number of processes.
      index: index of this process, from 0.
      timeout: seconds of waiting for the other processes, after which this process ends with
        status 1 and a message.

    Raises:
      InputError: only some of the three values are given, they do not fit, the coordinator's port
        is in use, a pod of a Kubernetes Job cannot find the others, or JAX has computed before and
        the process may not be alone.
      ServiceError: joining failed for another reason.
    """
    are_set = [value is not None for value in (coordinator, count, index)]
    if any(are_set) and not all(are_set):
        raise InputError(
            "coordinator_address, num_processes and process_id must be given together, or not at"
            f" all to detect them; found {coordinator}, {count}, {index}"
        )
    if coordinator is None and is_single_slurm_task():
        return
    if coordinator is not None and count is not None and index is not None:
        _check_place(coordinator, count, index)
    others = "the other processes" if index in (0, None) else f"process 0 at {coordinator}"
    address = None if index in (0, None) else coordinator
    if coordinator is None:
        check_kubernetes()
    try:
        with waiting_for(others, timeout, join_advice(coordinator is not None), address):
            _initialize(coordinator, count, index, timeout)
            _connect_cpus()
    except InputError:
        if any(are_set) or may_have_others(jax.default_backend()):
            raise
    except ValueError:
        if any(are_set):
            raise
    if message := slurm_warning():
        _log.warning(message)


def _initialize(
    coordinator: str | None, count: int | None, index: int | None, timeout: int
) -> None:
    """Joins the others. Raises an InputError if JAX has computed before."""
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=slurm_local_devices(),
            initialization_timeout=timeout + 60,
        )
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise InputError(
            "the config file, or a module that it imports, computes with JAX on import, before the"
            " processes of this run join; move the computation into a function, or use NumPy"
        ) from error


def _connect_cpus() -> None:
    """Opens the connections between CPUs of several processes.

    Otherwise the first training step opens them, and fails if another process is still compiling it
    30 s later.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    mesh = data_mesh()
    ones = place_batch(np.ones(jax.local_device_count(), np.float32), mesh)
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones))


def _check_place(coordinator: str, count: int, index: int) -> None:
    """Raises an InputError for an index that is out of range or a port that cannot be used."""
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"coordinator_address must be HOST:PORT; found {coordinator!r}")
    if not 0 <= index < count:
        raise InputError(
            f"process_id must be from 0 to {count - 1} (num_processes - 1); found {index}"
        )
    if index == 0:
        check_port_is_free(int(coordinator.rpartition(":")[2]))


def is_first_process() -> bool:
    """Whether this is process 0, which writes the files that all processes share."""
    return jax.process_index() == 0


def process_shard() -> tuple[int, int]:
    """The index of this process and the number of processes."""
    return jax.process_index(), jax.process_count()


def wait_for_all(name: str) -> None:
    """Waits until every process reaches the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_process_first(load: Callable[[], Result]) -> Result:
    """Calls a function in process 0, and then in the others, which find the files that it wrote.

    An error in one process is raised in all of them.
    """
    loaded: list[Result] = []
    run_in_first_process(lambda: loaded.append(load()))
    return run_in_all_processes(lambda: loaded[0] if loaded else load())


def gather(tree: Tree) -> Tree:
    """Gathers arrays that are sharded over their leading axis, as NumPy arrays in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def data_mesh(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    *,
    parameter_shards: int = 1,
) -> Mesh:
    """A mesh with the axes "data" and "parameters".

    Args:
      devices: devices of all processes; None uses all devices.
      parameter_shards: devices that share one copy of the parameters and the optimizer state.

    Raises:
      InputError: the number of shards does not divide the number of devices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    if parameter_shards < 1 or len(devices) % parameter_shards:
        valid = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"config.mesh.parameter_shards must divide the number of devices, {len(devices)}:"
            f" {', '.join(map(str, valid))}; found {parameter_shards}"
        )
    shape = (len(devices) // parameter_shards, parameter_shards)
    return jax.make_mesh(shape, _BOTH_AXES, (AxisType.Auto, AxisType.Auto), devices=devices)


def parameter_shards_hint(shards: int, trained_bytes: int) -> str | None:
    """A message if a network is too small for `parameter_shards` to save memory; None otherwise.

    Args:
      shards: devices that share one copy of the parameters.
      trained_bytes: bytes of the trained parameters.
    """
    if shards == 1 or trained_bytes >= _FEW_PARAMETER_BYTES:
        return None
    saved = 2 * trained_bytes * (1 - 1 / shards) / 1e6
    return (
        f"config.mesh.parameter_shards={shards} saves at most {saved:.0f} MB of parameters and"
        " momentum per device, and gathering the parameters can take more than that: compare"
        " --mode=plan with config.mesh.parameter_shards=1"
    )


def is_single_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is one CPU device."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of metrics and other small arrays: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """The sharding of a parameter or its momentum: over its largest axis that the shards divide.

    Replicated if there is no such axis, or one shard.
    """
    shards = mesh.shape[PARAMETER_AXIS]
    divisible = [i for i, size in enumerate(shape) if size >= shards and size % shards == 0]
    if shards == 1 or not divisible:
        return replicated(mesh)
    largest = max(divisible, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, PARAMETER_AXIS))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch [N, ...]: evenly over the leading axis."""
    return NamedSharding(mesh, PartitionSpec(_BOTH_AXES))


def stacked_batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches [S, N, ...]: each evenly over N."""
    return NamedSharding(mesh, PartitionSpec(None, _BOTH_AXES))


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Places a host batch, a pytree of NumPy arrays [N, ...], sharded over N.

    With several processes, each passes its part of the batch.
    """
    return _place(batch, batch_sharding(mesh))


def place_indices(indices: Tree, mesh: Mesh) -> Tree:
    """Places indices of several batches [S, N, ...], sharded over N; scalars are replicated."""
    sharded, unsharded = stacked_batch_sharding(mesh), replicated(mesh)
    return jax.tree.map(lambda x: _place(x, sharded if np.ndim(x) else unsharded), indices)


def replicate_host(tree: Tree, mesh: Mesh) -> Tree:
    """Replicates host arrays, which must be equal in every process, on every device."""
    return _place(tree, replicated(mesh))


def _place(tree: Tree, sharding: NamedSharding) -> Tree:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a pytree to every device; the copy shares no buffer with the original."""
    return _copy(tree, lambda shape: replicated(mesh))


def place_parameters(tree: Tree, mesh: Mesh) -> Tree:
    """Copies parameters, or a pytree of their shapes, with `parameter_sharding`."""
    return _copy(tree, lambda shape: parameter_sharding(mesh, shape))


def _copy(tree: Tree, sharding: Callable[[Sequence[int]], NamedSharding]) -> Tree:
    # Through the host. `device_put` to the device that holds an array would alias it, and a step
    # that donates its state would then delete the network's own arrays.
    def copy(x: Any) -> jax.Array:
        if is_key(x):
            bits = np.array(jax.random.key_data(x))
            return from_numbers(jax.device_put(bits, sharding(())), template=x)
        return jax.device_put(np.array(x), sharding(np.shape(x)))

    return jax.tree.map(copy, tree)


def check_batch_size(batch_size: int, mesh: Mesh, field: str, accumulate_parts: int = 1) -> None:
    """Checks that devices and parts divide a batch.

    Args:
      batch_size: images over all devices.
      mesh: the devices.
      field: the config field, for the message.
      accumulate_parts: parts that each device computes one after the other.

    Raises:
      InputError: they do not; the message names the nearest sizes that work.
    """
    multiple = mesh.size * accumulate_parts
    parts = f" and {accumulate_parts} parts" if accumulate_parts > 1 else ""
    if batch_size >= 1 and batch_size % multiple == 0:
        return
    below, above = batch_size // multiple * multiple, -(-batch_size // multiple) * multiple
    nearest = " or ".join(str(size) for size in (below, above) if size > 0) or str(multiple)
    raise InputError(
        f"{field}={batch_size} is not divisible by {mesh.size} devices{parts}; the nearest sizes"
        f" that are: {nearest}"
    )
