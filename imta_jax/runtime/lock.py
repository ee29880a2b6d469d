"""A lock that allows one run at a time in a folder."""

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import filelock

from imta_jax.errors import FilePermissionError, FolderInUseError, StorageError, message_of
from imta_jax.runtime.files import check_regular_file, create_folder

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
        if path.exists():
            check_regular_file(path)
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
        create_folder(folder)


def check_workdir(folder: Path) -> None:
    """Checks that `create_workdir` can create the folder, and a run can write to it.

    Raises:
      StorageError: it cannot.
    """
    with _storage_errors(folder):
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not existing.is_dir():
            create_folder(existing)  # raises an error that says what it is
        if not os.access(existing, os.W_OK | os.X_OK):
            raise FilePermissionError(errno.EACCES, f"no permission to write to {existing}")
        if (folder / _LOCK_FILE).exists():
            check_regular_file(folder / _LOCK_FILE)


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            error.errno or errno.EIO,
            f"--workdir={folder} cannot be created or written ({message_of(error)}); use another"
            " folder",
        ) from error


def lock_owner(folder: Path) -> str:
    """The process that last locked a folder, as text."""
    try:
        return (folder / _LOCK_FILE).read_text().strip() or "unknown process"
    except OSError:  # Windows does not read a locked file.
        return "unknown process"
