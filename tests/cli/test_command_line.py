"""What the launcher says of errors: a line for what was given, the traceback for what is a bug."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from imta_jax.data.sources.npz import read_npz
from imta_jax.evaluation import geometric_quota
from imta_jax.nn.pixels import normalize
from imta_jax.runtime import command_line
from imta_jax.runtime.lock import only_run_in
from imta_jax.training import NonFiniteLossError


def caught(act):
    with pytest.raises(Exception) as found:
        act()
    return found.value


def hold_twice(folder):
    with only_run_in(folder), only_run_in(folder):
        pass


def test_what_our_checks_raise_is_told_plainly(tmp_path):
    refused = {
        "error: q = [-1.]": lambda: geometric_quota(np.array([-1.0]), 3),
        "error: no file /nowhere.npz": lambda: read_npz(Path("/nowhere.npz"), None),
        "error: another run is at work": lambda: hold_twice(tmp_path),
    }
    for message, act in refused.items():
        assert command_line.plain_message(caught(act)).startswith(message)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refuses_is_told_plainly_wherever_it_is_met(number):
    class FullDisk:
        def write(self, *_):
            raise OSError(number, os.strerror(number))

    told = command_line.plain_message(caught(lambda: print("row", file=FullDisk())))
    assert os.strerror(number) in told and "make room" in told and "\n" not in told


def test_what_is_a_bug_keeps_its_traceback(tmp_path):
    def raised_elsewhere():
        raise ValueError("of a program that calls us")

    three = np.zeros((2, 3), np.uint8)
    bugs = [
        raised_elsewhere,
        lambda: normalize(three, (0.5, 0.5), (1.0, 1.0)),  # a ValueError out of JAX
        lambda: only_run_in(None).__enter__(),  # an AttributeError
        lambda: only_run_in(tmp_path / "a\0b").__enter__(),  # a ValueError out of the system
    ]
    for act in bugs:
        error = caught(act)
        assert command_line.plain_message(error) is None, error
        with pytest.raises(type(error)):
            command_line.end_with(error, whole=False)


def test_a_loss_that_is_not_finite_is_for_users():
    assert issubclass(NonFiniteLossError, command_line._TOLD_PLAINLY)


@pytest.mark.parametrize("whole", [False, True])
def test_the_launcher_ends_with_status_1_and_tells_where_if_asked_to(whole, tmp_path):
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path}/run", "--mode=evalute"]
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments, f"--traceback={whole}"],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == whole and "unknown mode 'evalute'" in done.stderr
    if not whole:
        assert done.stderr.startswith("launch.py: error: unknown mode 'evalute'; valid, ")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("configs/quickstart.py:nope", "unknown preset 'nope'; valid, the closest first: paper"),
        ("configs/studies/ablation.py:nope", "unknown preset 'nope'; valid: quickstart"),
        ("configs/nofile.py", "no such file; config files in that folder: configs/cifar10.py"),
    ],
)
def test_a_config_that_is_not_there_is_told_in_one_line(config, told, monkeypatch):
    monkeypatch.chdir(tiny_run.ROOT)
    for argv in (["launch.py", f"--config={config}"], ["launch.py", "--config", config]):
        with pytest.raises(SystemExit) as ended:
            command_line.parse_flags(argv)
        assert told in ended.value.code
        assert "\n" not in ended.value.code
