"""Messages while processes join a run, and how Slurm divides the GPUs of a node."""

import contextlib
import errno
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping

from imta_jax.errors import InputError, ServiceError

_LINE_SECONDS = 5.0
_ADVICE = (
    "Check --coordinator_address, --num_processes and --process_id, and that all processes run"
)


@contextlib.contextmanager
def waiting_for(what: str, timeout: int) -> Iterator[None]:
    """Prints every few seconds what the block waits for, and ends the process after the timeout.

    JAX would end it with a stack trace of C++ after its own timeout, and raises no exception.

    Args:
      what: for the messages.
      timeout: seconds.

    Raises:
      ServiceError: the block raised a RuntimeError, as JAX does for errors of the network.
    """
    done = threading.Event()
    threading.Thread(target=_report, args=(what, timeout, done), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise ServiceError(f"joining {what} failed: {reason}. {_ADVICE}") from error
    finally:
        done.set()


def _report(what: str, timeout: int, done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(min(_LINE_SECONDS, max(start + timeout - time.monotonic(), 0))):
        waited = time.monotonic() - start
        if waited >= timeout:
            _write(f"error: waited {timeout} s (--join_timeout) for {what}. {_ADVICE}")
            os._exit(1)
        _write(f"waiting for {what} ({waited:.0f} s of {timeout} s)")


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def check_port_is_free(port: int) -> None:
    """Checks that this process can listen on a port; JAX would end it with a segmentation fault.

    Raises:
      InputError: another process uses the port.
    """
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"coordinator_address has port {port}, which another process on this host uses;"
                    " choose another port"
                ) from error


def is_single_slurm_task(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm started one task. It needs no other process and may use all its GPUs."""
    return "SLURM_JOB_ID" in environment and environment.get("SLURM_NTASKS") == "1"


def slurm_local_devices(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """All GPUs of the node, for a task of Slurm that is the only one of the run on its node.

    JAX would take one GPU per task.

    Returns:
      Indices of the GPUs; None if JAX or JAX_LOCAL_DEVICE_IDS chooses them.
    """
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    tasks_per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    one_task_per_node = re.fullmatch(r"1(\(x\d+\))?", tasks_per_node)
    if not one_task_per_node or not gpus.isdigit() or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return list(range(int(gpus)))


def unused_gpus_warning(environment: Mapping[str, str] = os.environ) -> str | None:
    """A message if Slurm starts several tasks on a node, but fewer than it has GPUs."""
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if not tasks or not gpus.isdigit() or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    count = int(tasks[0])
    if slurm_local_devices(environment) or count >= int(gpus):
        return None
    return (
        f"{count} of the {gpus} GPUs of this node are used, one per task: start {gpus} tasks per"
        f" node (--ntasks-per-node={gpus}), or one (--ntasks-per-node=1), which uses all GPUs"
    )
