"""The first lines of a run's log: command line, versions, commit, devices and folder."""

import logging
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import imta_jax

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10
_HEAD = re.compile(r"^# branch\.oid ([0-9a-f]+)$", re.MULTILINE)


def log_run_header(workdir: Path) -> None:
    """Logs how this process was started, and where it runs.

    Args:
      workdir: folder of the run.
    """
    import jax  # Imported late: reading the command line does not need it.

    devices, commit = jax.devices(), code_commit()
    versions = f"imta_jax {imta_jax.__version__}, jax {jax.__version__}"
    _log.info("command: %s", command_line())
    _log.info(
        "%s, Python %s%s",
        versions,
        platform.python_version(),
        f", commit {commit}" if commit else "",
    )
    _log.info(
        "devices: %d x %s (%s), %d process%s",
        len(devices),
        devices[0].device_kind,
        devices[0].platform,
        jax.process_count(),
        "" if jax.process_count() == 1 else "es",
    )
    _log.info("workdir: %s", workdir.absolute())


def command_line() -> str:
    """The command that started this process, quoted for a shell."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def code_commit() -> str | None:
    """The commit of the repository that holds this package, else of the working directory.

    Returns:
      The hash, with "(modified)" if tracked files differ from it; None without a repository or Git.
    """
    package = Path(imta_jax.__file__).resolve().parent.parent
    return git_commit(package if (package / ".git").exists() else Path.cwd())


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in a folder; see `code_commit`."""
    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    command = ["git", "-C", str(folder), "--no-optional-locks", *status]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):  # no Git, or a slow file system
        return None
    head = _HEAD.search(done.stdout)
    if head is None:  # no repository, or one without a commit
        return None
    is_modified = any(not line.startswith("#") for line in done.stdout.splitlines())
    return f"{head[1]} (modified)" if is_modified else head[1]
