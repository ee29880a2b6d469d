"""Preemption: sync points are numbered without gaps, and signals end the process.

JAX stops several processes at the sync point after the highest that any of them had reached. If a
number were skipped, used twice or used elsewhere, they would not stop.
"""

import contextlib
import itertools
import os
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
    def fail(number):
        raise AssertionError(f"sync point {number}")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", fail)
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


BEGIN = """
import hashlib, os, signal, time
from imta_jax.runtime import preemption

def compute():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Runs no Python code, like the compiler.

preemption.install_signal_handlers()
"""

WAIT = """
print("ready", flush=True)
compute()
"""

BEFORE_THE_FIRST_STEP = """
with preemption.preemption_guard() as stop:
    print("ready", flush=True)
    compute()
"""

TRAIN = """
with preemption.preemption_guard() as stop:
    stop.should_stop()
    print("ready", flush=True)
    while not stop.should_stop():
        time.sleep(0.01)
    print("saving", flush=True)
    if SLOW:
        compute()
    raise preemption.Interrupted
"""

AFTER_THE_LAST_STEP = """
with preemption.preemption_guard() as stop:
    stop.should_stop()
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
raise AssertionError("the signal is lost")
"""


# JAX's runtime takes SIGTERM.
AFTER_TRAINING_IN_ONE_OF_TWO = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
preemption.configure_signals_after_join(2)
preemption.end_process_on_signals()
print("ready", flush=True)
compute()
"""


@contextlib.contextmanager
def started(program, before=""):
    """Starts a program and waits until it is ready; ends it afterwards."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", before + BEGIN + program]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", preemption.SIGNALS)
@pytest.mark.parametrize(
    "program",
    [WAIT, BEFORE_THE_FIRST_STEP, AFTER_THE_LAST_STEP, AFTER_TRAINING_IN_ONE_OF_TWO],
)
def test_with_nothing_to_save_a_signal_ends_the_process_at_once(program, number):
    with started(program) as process:
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == preemption.EXIT_CODE, error
        assert "run the same command to resume" in error and "Traceback" not in error


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_training_is_asked_to_stop(number):
    with started("SLOW = False" + TRAIN) as process:
        process.send_signal(number)
        output, error = process.communicate(timeout=60)
        assert output == "saving\n" and "saving a checkpoint" in error
        assert error.rstrip().endswith("Interrupted")


def test_only_a_second_ctrl_c_ends_the_process_while_it_saves():
    with started("SLOW = True" + TRAIN) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == preemption.FORCED_EXIT_CODE
        assert "ended without saving" in error


def test_a_job_in_the_background_keeps_ignoring_ctrl_c():
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with started(WAIT, before=ignored) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == preemption.EXIT_CODE
        assert "SIGTERM" in error and "Ctrl-C" not in error


def test_in_a_notebook_the_first_ctrl_c_stops_training_and_the_second_raises():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with pytest.raises(KeyboardInterrupt), preemption_guard() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


def test_signals_are_handled_before_jax_is_imported():
    program = "import sys, imta_jax.cli.main; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
