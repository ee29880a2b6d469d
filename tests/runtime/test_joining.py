"""Processes that cannot join a run raise within the timeout, and tasks of Slurm."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from imta_jax.distributed import join_processes
from imta_jax.errors import InputError
from imta_jax.runtime.joining import (
    check_kubernetes,
    is_single_slurm_task,
    join_advice,
    problem_of,
    slurm_local_devices,
    slurm_warning,
)

PROGRAM = """
import sys
from imta_jax.distributed import join_processes
from imta_jax.runtime import joining
from imta_jax.runtime.command_line import exit_with_error
joining._LINE_SECONDS = 0.5
try:
    join_processes(sys.argv[1], 2, int(sys.argv[2]), timeout=2)
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


@pytest.mark.parametrize(("index", "peers"), [(0, "the other processes"), (1, "process 0 at")])
def test_a_process_that_waits_alone_fails_after_the_timeout(index, peers):
    done = join(f"localhost:{free_port()}", index)
    assert done.returncode == 1, done.stderr
    assert f"waiting for {peers}" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and peers in last and "--join_timeout" in last
    assert "--coordinator_address" in last and ("does not accept" in last) == (index == 1)
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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "CUDA_VISIBLE_DEVICES": "5"}, [0]),
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
                "SLURM_TRES_PER_TASK": "cpu:8,gres/gpu:4",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            },
            [0, 1, 2, 3],
        ),
        # Eight tasks that see all eight GPUs: JAX gives one to each.
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "8(x4)",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            None,
        ),
    ],
)
def test_a_slurm_task_with_its_own_gpus_uses_those_that_it_sees(changes, expected):
    assert slurm_local_devices(SLURM | changes) == expected
    assert slurm_warning(SLURM | changes) is None


def test_a_process_outside_of_srun_is_reported():
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_GPUS_ON_NODE": "8"}
    message = slurm_warning(batch)
    assert "8 tasks (--ntasks)" in message and "srun" in message
    assert slurm_warning(batch | {"SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, ("8 tasks", "--ntasks", "srun")),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ("--worker=all",)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ("completionMode", "subdomain")),
        ({}, ("--coordinator_address", "--num_processes", "--process_id")),
    ],
)
def test_advice_is_for_the_cluster_that_was_detected(environment, names):
    assert all(name in join_advice(False, environment) for name in names)
    assert "--process_id" in join_advice(True, environment)


def test_addresses_that_cannot_be_reached_are_explained():
    assert "'no-such-host.invalid' is unknown" in problem_of("no-such-host.invalid:1")
    assert "does not accept connections" in problem_of(f"localhost:{free_port()}")
    assert problem_of(None) == ""


def test_a_pod_that_cannot_find_the_others_is_rejected(monkeypatch):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pod 1 .*jax\[k8s\].*--coordinator_address"):
        check_kubernetes(pod)
    for alone in ({"JOB_COMPLETION_INDEX": "0"}, {"TPU_WORKER_HOSTNAMES": "a,b"}):
        check_kubernetes(pod | alone)
    check_kubernetes({})


CLUSTER_PROGRAM = """
import os, sys
from jax._src.clusters import cloud_tpu_cluster, cluster
on_tpu = "TPU_WORKER_ID" in os.environ
cloud_tpu_cluster.running_in_cloud_tpu_vm = cluster.running_in_cloud_tpu_vm = on_tpu
import jax
from imta_jax.distributed import join_processes
join_processes(timeout=int(sys.argv[1]))
print(jax.process_index(), jax.process_count())
jax.distributed.shutdown()
"""


def cluster_environment(kind, index):
    """The variables of task `index` of two on this host."""
    if kind == "slurm":
        return {
            "SLURM_JOB_ID": str(free_port() % 4096),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
        }
    return {
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "TPU_WORKER_ID": str(index),
        # Otherwise JAX asks the metadata server of Google Cloud.
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }


def start_programs(program, environments, *arguments):
    """A process per environment, on a common port."""
    common = {"JAX_COORDINATOR_PORT": str(free_port()), "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, **environment},
        )
        for environment in environments
    ]


def start_tasks(kind, indices, timeout):
    environments = [cluster_environment(kind, index) for index in indices]
    return start_programs(CLUSTER_PROGRAM, environments, timeout)


@pytest.mark.parametrize("kind", ["slurm", "tpu"])
def test_two_tasks_of_a_cluster_join(kind):
    tasks = start_tasks(kind, (0, 1), timeout=120)
    actual = [task.communicate(timeout=240) for task in tasks]
    assert [out.splitlines()[-1].split() for out, _ in actual] == [["0", "2"], ["1", "2"]], actual


KUBERNETES_PROGRAM = """
import os, sys
from types import ModuleType, SimpleNamespace as Record
from jax._src.clusters import k8s_cluster

def record(**fields):
    return Record(**fields)

subdomain = os.environ.get("SUBDOMAIN")
owner = record(controller=True, kind="Job")
metadata = record(labels={"job-name": "job"}, owner_references=[owner], name="job")
pod = record(metadata=metadata, spec=record(subdomain=subdomain))
job = record(metadata=metadata, spec=record(parallelism=2))
core = record(
    list_namespaced_pod=lambda **_: record(items=[pod]),
    list_namespaced_service=lambda *_: record(items=[]),
)
module = ModuleType("kubernetes")
module.config = record(load_incluster_config=lambda: None)
module.client = record(
    CoreV1Api=lambda: core,
    BatchV1Api=lambda: record(read_namespaced_job=lambda **_: job),
    exceptions=record(ApiException=OSError),
)
module.__spec__ = record()
sys.modules["kubernetes"] = module
cluster = k8s_cluster.K8sCluster
cluster._namespace = classmethod(lambda cls: "default")
if subdomain:  # the host name of the first pod
    port = os.environ["JAX_COORDINATOR_PORT"]
    cluster.get_coordinator_address = classmethod(lambda cls, **_: f"localhost:{port}")

import jax
from imta_jax.distributed import join_processes
from imta_jax.runtime.command_line import exit_with_error
try:
    join_processes(timeout=120)
except Exception as error:
    exit_with_error(error, show_traceback=False)
print(jax.process_index(), jax.process_count())
jax.distributed.shutdown()
"""


def test_pods_of_an_indexed_job_join_and_a_missing_service_is_reported():
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "localhost"}
    environments = [
        {**pod, "SUBDOMAIN": "pods", "JOB_COMPLETION_INDEX": "0"},
        {**pod, "SUBDOMAIN": "pods", "JOB_COMPLETION_INDEX": "1"},
        {**pod, "JOB_COMPLETION_INDEX": "0"},
    ]
    *pair, lost = (
        task.communicate(timeout=240) for task in start_programs(KUBERNETES_PROGRAM, environments)
    )
    assert [out.splitlines()[-1].split() for out, _ in pair] == [["0", "2"], ["1", "2"]], pair
    assert "headless service" in lost[1] and "--coordinator_address" in lost[1], lost
    assert "Traceback" not in lost[1]


def test_a_task_whose_twin_is_missing_names_the_flag():
    tasks = [start_tasks(kind, (0,), timeout=4)[0] for kind in ("slurm", "tpu")]
    errors = [task.communicate(timeout=240)[1].splitlines()[-1] for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    assert "--ntasks" in errors[0] and "--worker=all" in errors[1]


def test_a_single_slurm_task_does_not_initialize_jax_distributed(monkeypatch):
    assert is_single_slurm_task(SLURM | {"SLURM_NTASKS": "1"})
    assert not is_single_slurm_task(SLURM | {"SLURM_NTASKS": "4"})
    assert not is_single_slurm_task({"SLURM_NTASKS": "1"})
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr("jax.distributed.initialize", None)
    join_processes()


def test_jax_may_compute_before_a_process_that_is_alone_but_not_before_others_join(monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "OMPI_MCA_orte_hnp_uri", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    jax.numpy.ones(()).block_until_ready()
    join_processes()
    with pytest.raises(InputError, match=r"config file.*import"):
        join_processes(f"localhost:{free_port()}", 2, 0)
    for name, value in (SLURM | {"SLURM_NTASKS": "4"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"config file.*import"):
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
    calls = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **rest: calls.update(rest))
    join_processes()
    assert calls["local_device_ids"] == [*range(8)]


def test_unused_gpus_are_reported_with_the_flag():
    two = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}
    message = slurm_warning(two)
    assert "2 of the 8 GPUs" in message
    assert "--ntasks-per-node=8" in message and "--ntasks-per-node=1" in message
    for environment in (
        {},
        SLURM,
        SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"},
        two | {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"},
    ):
        assert slurm_warning(environment) is None
