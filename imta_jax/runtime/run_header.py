"""The first lines of a run's log: command line, versions, commit, devices and folder."""

import logging
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import imta_jax

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10


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
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{head} (modified)" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):  # no Git, or a slow file system
        return None
    return done.stdout.strip() if done.returncode == 0 else None
