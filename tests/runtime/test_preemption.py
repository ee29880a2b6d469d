"""Several processes agree on when to stop by the numbers of one process-wide row of questions.

JAX's runtime stops them at the number after the highest that any had asked when one was told. So a
number that is left out, asked twice or asked by anyone else is a SIGTERM that is never answered.
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
def asked(monkeypatch):
    """Numbers that JAX's runtime is asked by, in what takes itself for one process of two."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return number == 5

    monkeypatch.setattr(preemption, "_sync_points", itertools.count(1))
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    return numbers


def test_sync_points_are_numbered_without_gaps_from_phase_to_phase(asked):
    with preemption_guard() as stop:
        assert not any(stop.should_stop() for _ in range(3))
    with preemption_guard() as stop:
        assert [stop.should_stop() for _ in range(3)] == [False, True, False]
    assert asked == [1, 2, 3, 4, 5, 6]


def test_checkpoints_do_not_ask(monkeypatch, tmp_path):
    def refuse(number):
        raise AssertionError(f"asked by {number}")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", refuse)
    state = tiny_run.make_phase("phase_one", data_mesh()).new_state()
    with CheckpointStore(tmp_path) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, state, {}, 50.0)
            checkpoints.wait()
        assert checkpoints.newest() == 2


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.delattr(multihost_utils, "reached_preemption_sync_point")
    stop = StopRequest()
    assert not stop.should_stop()
    stop.set()
    assert stop.should_stop()


TRYING = """
import threading
from imta_jax.runtime import preemption

preemption.GRACE_SECONDS = 0.1
preemption.install_sigterm_handler()
threading.Thread(target=threading.Event().wait).start()  # as a download that is tried again
print("trying", flush=True)
threading.Event().wait()
"""


def test_a_thread_that_goes_on_trying_does_not_keep_the_process():
    with subprocess.Popen([sys.executable, "-c", TRYING], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"trying\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == preemption.EXIT_CODE
        finally:
            process.kill()
