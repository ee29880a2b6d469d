"""Processes that cannot join a run raise within the timeout, and tasks of Slurm."""

import socket
import subprocess
import sys

import pytest

from imta_jax.distributed import join_processes
from imta_jax.runtime.joining import (
    is_single_slurm_task,
    slurm_local_devices,
    unused_gpus_warning,
)

PROGRAM = """
import sys
from imta_jax.distributed import join_processes
from imta_jax.runtime import joining
from imta_jax.runtime.command_line import exit_with_error
joining._LINE_SECONDS = 0.5
try:
    join_processes(sys.argv[1], 2, int(sys.argv[2]), timeout=4)
except Exception as error:
    exit_with_error(error, show_traceback=False)
"""


def join(address, index):
    command = [sys.executable, "-c", PROGRAM, address, str(index)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("index", "what"), [(0, "the other processes"), (1, "process 0 at")])
def test_a_process_that_waits_alone_fails_after_the_timeout(index, what):
    done = join(f"localhost:{free_port()}", index)
    assert done.returncode == 1, done.stderr
    assert f"waiting for {what}" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and what in last and "--join_timeout" in last
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_a_one_line_error():
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::", 0))
        holder.listen()
        done = join(f"localhost:{holder.getsockname()[1]}", 0)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "coordinator_address has port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, 2), r"process_id.* 0 to 1 .*\b2"),
        (("localhost:1", 2, -1), r"process_id.*-1"),
        (("localhost", 2, 0), r"coordinator_address.*HOST:PORT.*'localhost'"),
        (("localhost:1", 2, None), r"coordinator_address, num_processes and process_id"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        join_processes(*arguments)


SLURM = {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}


def test_a_single_slurm_task_does_not_initialize_jax_distributed(monkeypatch):
    assert is_single_slurm_task(SLURM | {"SLURM_NTASKS": "1"})
    assert not is_single_slurm_task(SLURM | {"SLURM_NTASKS": "4"})
    assert not is_single_slurm_task({"SLURM_NTASKS": "1"})
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr("jax.distributed.initialize", None)
    join_processes()


def test_one_slurm_task_per_node_uses_all_gpus_of_the_node(monkeypatch):
    assert slurm_local_devices(SLURM) == [*range(8)]
    for changed in (
        {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"},
        {"SLURM_STEP_TASKS_PER_NODE": "1,2"},
        {"SLURM_GPUS_ON_NODE": ""},
        {"JAX_LOCAL_DEVICE_IDS": "0"},
    ):
        assert slurm_local_devices(SLURM | changed) is None
    for name, value in (SLURM | {"SLURM_NTASKS": "4"}).items():
        monkeypatch.setenv(name, value)
    given = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **rest: given.update(rest))
    join_processes()
    assert given["local_device_ids"] == [*range(8)]


def test_unused_gpus_are_reported_with_the_flag():
    two = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}
    message = unused_gpus_warning(two)
    assert "2 of the 8 GPUs" in message
    assert "--ntasks-per-node=8" in message and "--ntasks-per-node=1" in message
    for environment in (
        {},
        SLURM,
        SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"},
        two | {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"},
    ):
        assert unused_gpus_warning(environment) is None
