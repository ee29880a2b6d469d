"""The header of a run's log."""

import logging
import subprocess

import imta_jax
from imta_jax.runtime.run_header import git_commit, log_run_header


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_the_header_names_command_version_devices_and_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.py", "--config=a b"])
    with caplog.at_level(logging.INFO, logger="imta_jax"):
        log_run_header(tmp_path / "run")
    for expected in ("launch.py '--config=a b'", imta_jax.__version__, "devices: 8 x cpu", "/run"):
        assert expected in caplog.text


def test_the_commit_says_whether_files_were_modified(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "other").write_text("untracked")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit} (modified)"
