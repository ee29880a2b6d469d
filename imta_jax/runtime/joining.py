"""Messages while processes join a run, and how Slurm divides the GPUs of a node."""

import contextlib
import errno
import importlib.util
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from imta_jax.errors import InputError, ServiceError

_LINE_SECONDS, _PROBE_SECONDS = 5.0, 3.0
_CLUSTER_VARIABLES = {"KUBERNETES_SERVICE_HOST", "OMPI_MCA_orte_hnp_uri", "SLURM_JOB_ID"}
_FLAGS_ADVICE = (
    "Check --coordinator_address, --num_processes and --process_id, and that all processes run"
)


def join_advice(has_flags: bool, environment: Mapping[str, str] = os.environ) -> str:
    """What to check if processes do not find each other.

    Args:
      has_flags: whether the three flags are given, so that nothing is detected.
      environment: variables of the cluster.
    """
    if has_flags:
        return _FLAGS_ADVICE
    if "SLURM_JOB_ID" in environment:
        count = environment.get("SLURM_NTASKS", "?")
        return (
            f"Slurm started {count} tasks (--ntasks): start this command with srun, and no other"
            " command in the same step; or set --coordinator_address, --num_processes and"
            " --process_id"
        )
    if "TPU_WORKER_HOSTNAMES" in environment or "TPU_WORKER_ID" in environment:
        return "Start the same command on all workers of the slice (gcloud: --worker=all)"
    if "KUBERNETES_SERVICE_HOST" in environment:
        return (
            "The Job needs completionMode: Indexed, completions equal to parallelism, and a"
            " headless service as subdomain; or set --coordinator_address, --num_processes and"
            " --process_id"
        )
    return _FLAGS_ADVICE


@contextlib.contextmanager
def waiting_for(
    awaited: str, timeout: int, advice: str = _FLAGS_ADVICE, address: str | None = None
) -> Iterator[None]:
    """Prints every few seconds what the block waits for, and ends the process after the timeout.

    JAX would end it with a stack trace of C++ after its own timeout, and raises no exception.

    Args:
      awaited: name of the process or service that the block waits for, for messages.
      timeout: seconds.
      advice: see `join_advice`.
      address: HOST:PORT that the block connects to, which is examined after the timeout.

    Raises:
      ServiceError: the block raised an error of the network, or did not find what it needs.
    """
    done = threading.Event()
    error_text = f"error: waited {timeout} s (--join_timeout) for {awaited}"
    arguments = (awaited, timeout, done, lambda: f"{error_text}{problem_of(address)}. {advice}")
    threading.Thread(target=_report, args=arguments, daemon=True).start()
    try:
        yield
    except (RuntimeError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ServiceError(f"joining {awaited} failed: {reason}. {advice}") from error
    finally:
        done.set()


def _report(
    awaited: str, timeout: int, done: threading.Event, error_text: Callable[[], str]
) -> None:
    start = time.monotonic()
    while not done.wait(min(_LINE_SECONDS, max(start + timeout - time.monotonic(), 0))):
        waited = time.monotonic() - start
        if waited >= timeout:
            _write(error_text())
            os._exit(1)
        _write(f"waiting for {awaited} ({waited:.0f} s of {timeout} s)")


def problem_of(address: str | None) -> str:
    """Why an address HOST:PORT cannot be reached, to append to a message; "" if it can."""
    if address is None:
        return ""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS):
            return "; it is reachable, so another process is missing"
    except socket.gaierror:
        return f", whose host name {host!r} is unknown here"
    except OSError as error:
        return f", which does not accept connections ({error.strerror or error})"


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


def may_have_others(platform: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a cluster may have started this process. TPU hosts ask a server for the others."""
    return platform == "tpu" or not _CLUSTER_VARIABLES.isdisjoint(environment)


def is_single_slurm_task(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm started one task. It needs no other process and may use all its GPUs."""
    return "SLURM_JOB_ID" in environment and environment.get("SLURM_NTASKS") == "1"


def slurm_local_devices(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """The GPUs of a task of Slurm, where JAX would choose others.

    JAX gives task i of a node the visible GPU i. A task that is the only one on its node may use
    all of them. With `--gpus-per-task`, a task sees its own GPUs only, counted from 0.

    Returns:
      Indices of the GPUs; None if JAX or JAX_LOCAL_DEVICE_IDS chooses them.
    """
    tasks, gpus = _tasks_per_node(environment), environment.get("SLURM_GPUS_ON_NODE", "")
    if tasks is None or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if visible and (_has_own_gpus(environment) or tasks > len(visible)):
        return list(range(len(visible)))
    if tasks != 1 or not gpus.isdigit():
        return None
    return list(range(len(visible) or int(gpus)))


def _step_tasks(environment: Mapping[str, str]) -> str:
    """Tasks of this step per node, such as "8(x4),2"; "" outside of `srun`."""
    return environment.get("SLURM_STEP_TASKS_PER_NODE", "")


def _tasks_per_node(environment: Mapping[str, str]) -> int | None:
    """Tasks of this step on each node; None if that differs between nodes or is unknown."""
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", _step_tasks(environment))
    return int(match[1]) if match else None


def _has_own_gpus(environment: Mapping[str, str]) -> bool:
    """Whether `--gpus-per-task` is set. Slurm 24 has another variable for it."""
    return "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get(
        "SLURM_TRES_PER_TASK", ""
    )


def slurm_warning(environment: Mapping[str, str] = os.environ) -> str | None:
    """A message if Slurm's tasks do not use all GPUs that they could."""
    allocated = environment.get("SLURM_NTASKS", "1")
    outside_of_step = "SLURM_JOB_ID" in environment and not _step_tasks(environment)
    if outside_of_step and allocated != "1":
        return (
            f"this process runs alone in an allocation of {allocated} tasks (--ntasks): start it"
            " with srun"
        )
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    match = re.match(r"\d+", _step_tasks(environment))
    if not match or not gpus.isdigit() or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    count = int(match[0])
    if slurm_local_devices(environment) or count >= int(gpus):
        return None
    return (
        f"{count} of the {gpus} GPUs of this node are used, one per task: start {gpus} tasks per"
        f" node (--ntasks-per-node={gpus}), or one (--ntasks-per-node=1), which uses all GPUs"
    )


def check_kubernetes(environment: Mapping[str, str] = os.environ) -> None:
    """Checks that the pods of an indexed Job can find each other, where no TPU lists them.

    Raises:
      InputError: a pod after the first would train alone.
    """
    index = environment.get("JOB_COMPLETION_INDEX", "0")
    is_pod = "KUBERNETES_SERVICE_HOST" in environment and "TPU_WORKER_HOSTNAMES" not in environment
    if is_pod and index != "0" and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            f"this is pod {index} of a Kubernetes Job, and cannot find the others without the"
            ' package kubernetes: pip install "jax[k8s]", or set --coordinator_address,'
            " --num_processes and --process_id"
        )
