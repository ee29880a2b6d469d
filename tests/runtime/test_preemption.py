"""Preemption: sync points are numbered without gaps, and SIGTERM ends the process.

JAX stops several processes at the sync point after the highest that any had reached. A number that
is skipped, used twice or used elsewhere would mean that they never stop.
"""

import itertools
import signal
import subprocess
import sys

import jax
import pytest
import tiny_run
from jax.experimental import multihost_utils

from imta_jax.distributed import data_mesh
from imta_jax.runtime import preemption
from imta_jax.runtime.preemption import StopRequest, preemption_guard
from imta_jax.training.checkpoints import CheckpointStore


@pytest.fixture
def used(monkeypatch):
    """The sync points that are used, in a process that appears to be one of two."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return number == 5

    monkeypatch.setattr(preemption, "_sync_points", itertools.count(1))
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    return numbers


def test_sync_points_are_numbered_without_gaps_from_phase_to_phase(used):
    with preemption_guard() as stop:
        assert not any(stop.should_stop() for _ in range(3))
    with preemption_guard() as stop:
        assert [stop.should_stop() for _ in range(3)] == [False, True, False]
    assert used == [1, 2, 3, 4, 5, 6]


def test_checkpoints_use_no_sync_points(monkeypatch, tmp_path):
    def refuse(number):
        raise AssertionError(f"sync point {number}")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", refuse)
    state = tiny_run.make_phase("phase_one", data_mesh()).new_state()
    with CheckpointStore(tmp_path) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, state, {}, 50.0)
            checkpoints.wait()
        assert checkpoints.newest() == 2


def test_one_process_uses_no_sync_points(monkeypatch):
    monkeypatch.delattr(multihost_utils, "reached_preemption_sync_point")
    stop = StopRequest()
    assert not stop.should_stop()
    stop.set()
    assert stop.should_stop()


PROGRAM = """
import threading
from imta_jax.runtime import preemption

preemption.GRACE_SECONDS = 0.1
preemption.install_sigterm_handler()
threading.Thread(target=threading.Event().wait).start()  # Like a download that is retried.
print("waiting", flush=True)
threading.Event().wait()
"""


def test_a_running_thread_does_not_keep_the_process_alive():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == preemption.EXIT_CODE
        finally:
            process.kill()
