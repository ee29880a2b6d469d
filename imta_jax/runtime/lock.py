"""A lock that allows one run at a time in a folder."""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from imta_jax.errors import FolderInUseError, StorageError

_log = logging.getLogger(__name__)
_LOCK_FILE = ".lock"


@contextlib.contextmanager
def lock_workdir(folder: Path) -> Iterator[None]:
    """Locks a run's folder inside the block. The lock of a killed process does not remain.

    Where the file system has no locks, logs a warning and continues without one.

    Args:
      folder: created if it does not exist.

    Raises:
      FolderInUseError: another run holds the lock; the message names its process.
      StorageError: the folder cannot be created or written.
    """
    path = folder / _LOCK_FILE
    create_workdir(folder)
    with _storage_errors(folder):
        path.open("a").close()
    # Before `acquire`, which empties the file in some versions of filelock.
    owner = lock_owner(folder)
    lock = filelock.FileLock(path, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise FolderInUseError(
            f"another run uses {folder} ({owner}); wait for it, stop it, or use another --workdir"
        ) from error
    except OSError as error:  # Some network file systems do not support locks.
        _log.warning("%s cannot be locked (%s): do not start a second run in it", folder, error)
    with contextlib.suppress(OSError):  # Windows does not write to a locked file.
        path.write_text(f"process {os.getpid()} on {platform.node()}\n")
    try:
        yield
    finally:
        lock.release()


def create_workdir(folder: Path) -> None:
    """Creates a run's folder, or one in it, if it does not exist.

    Raises:
      StorageError: it cannot be created.
    """
    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            error.errno,
            f"--workdir={folder} cannot be created or written ({error.strerror}); use another"
            " folder",
        ) from error


def lock_owner(folder: Path) -> str:
    """The process that last locked a folder, as text."""
    try:
        return (folder / _LOCK_FILE).read_text().strip() or "unknown process"
    except OSError:  # Windows does not read a locked file.
        return "unknown process"
