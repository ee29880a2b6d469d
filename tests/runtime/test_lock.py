import os
import signal
import subprocess
import sys

import filelock
import pytest

from imta_jax.errors import StorageError
from imta_jax.runtime.lock import check_workdir, lock_workdir

HOLD = """
import sys, time
from pathlib import Path
from imta_jax.runtime.lock import lock_workdir
with lock_workdir(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_raises_at_once_with_the_process_of_the_first(tmp_path):
    with lock_workdir(tmp_path), pytest.raises(BlockingIOError, match=rf"\b{os.getpid()}\b"):
        lock_workdir(tmp_path).__enter__()
    with lock_workdir(tmp_path):
        pass


def test_the_process_is_named_where_acquiring_empties_the_file(tmp_path, monkeypatch):
    def empty_and_fail(lock):
        (tmp_path / ".lock").write_text("")
        raise filelock.Timeout(lock.lock_file)

    with lock_workdir(tmp_path):
        monkeypatch.setattr(filelock.FileLock, "acquire", empty_and_fail)
        with pytest.raises(BlockingIOError, match=rf"\b{os.getpid()}\b"):
            lock_workdir(tmp_path).__enter__()


def test_the_lock_of_a_killed_process_does_not_block_the_next_run(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match=rf"\b{holder.pid}\b"):
            lock_workdir(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock_workdir(tmp_path):
        pass


def test_a_folder_that_cannot_be_created_raises_with_its_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--workdir=.*file/run"):
        lock_workdir(tmp_path / "file" / "run").__enter__()


@pytest.mark.parametrize("kind", ["file", "loop", "forbidden", "pipe"])
def test_a_folder_that_cannot_be_used_is_found_without_creating_it(tmp_path, monkeypatch, kind):
    if kind == "file":
        (tmp_path / "run").touch()
    if kind == "loop":
        (tmp_path / "run").symlink_to("run")
    if kind == "forbidden":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    if kind == "pipe":
        (tmp_path / "run").mkdir()
        os.mkfifo(tmp_path / "run" / ".lock")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=rf"--workdir={tmp_path}/run .*{tmp_path}"):
        check_workdir(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    if kind != "forbidden":
        with pytest.raises(StorageError, match=rf"--workdir={tmp_path}/run .*{tmp_path}"):
            lock_workdir(tmp_path / "run").__enter__()


def test_a_folder_that_can_be_created_is_accepted(tmp_path):
    check_workdir(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    with lock_workdir(tmp_path):
        assert "cannot be locked" in caplog.text
