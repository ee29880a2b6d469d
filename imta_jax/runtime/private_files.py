"""Files that only this user can have written, for content that is executed."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from imta_jax.runtime.files import replacing

_HAS_OWNERS = hasattr(os, "getuid")  # Not on Windows, whose home folders are private.


class NotPrivateError(PermissionError):
    """Another user may have written the file or the folder."""


def read_private(folder: Path, name: str) -> bytes:
    """Reads a file that only this user can have written.

    Args:
      folder: its folder.
      name: its name in the folder.

    Raises:
      NotPrivateError: the folder or the file is of another user, or its mode gives others access.
      OSError: the file cannot be read.
    """
    if not _HAS_OWNERS:
        return (folder / name).read_bytes()
    with _opened(folder) as folder_fd:
        _check_private(folder_fd, folder, 0o700)
        file_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder_fd)
        with open(file_fd, "rb") as file:
            _check_private(file_fd, folder / name, 0o600)
            return file.read()


def write_private(folder: Path, name: str, content: bytes) -> None:
    """Writes a file in one atomic step, so that `read_private` accepts it.

    Args:
      folder: its folder; created if it does not exist. Others lose their access to it.
      name: its name in the folder.
      content: the bytes.

    Raises:
      NotPrivateError: the folder is of another user.
      OSError: the file cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _HAS_OWNERS:
        with _opened(folder) as folder_fd:
            _check_owner(os.fstat(folder_fd), folder)
            os.fchmod(folder_fd, 0o700)
    with (
        replacing(folder / name) as temporary,
        open(temporary, "xb", opener=_create_private) as file,
    ):
        file.write(content)


def _create_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder. Others may replace the folder's path, but not what it refers to."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_private(descriptor: int, path: Path, mode: int) -> None:
    info = os.fstat(descriptor)
    _check_owner(info, path)
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise NotPrivateError(
            f"{path} has mode {stat.S_IMODE(info.st_mode):o}; expected {mode:o}, without access of"
            " other users"
        )


def _check_owner(info: os.stat_result, path: Path) -> None:
    if info.st_uid != os.getuid():
        raise NotPrivateError(f"{path} belongs to user {info.st_uid}; expected {os.getuid()}")
