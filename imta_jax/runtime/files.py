"""File writes that leave no partial content: a reader sees the old content or the new one."""

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imta_jax.errors import ExistingFileError, FilePermissionError, UserError
from imta_jax.runtime.paths import reason_missing


def create_folder(folder: Path) -> None:
    """Creates a folder and those that contain it, unless they exist.

    Raises:
      ExistingFileError: a file has its name.
      FilePermissionError: it may not be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        found = (path for path in (folder, *folder.parents) if os.path.lexists(path))
        path = next((path for path in found if not path.is_dir()), folder)
        is_link = path.is_symlink() and not path.exists()
        found_text = reason_missing(path) if is_link else f"{path} is a file"
        raise ExistingFileError(
            f"{found_text}; expected a folder; rename or delete the {'link' if is_link else 'file'}"
        ) from error
    except PermissionError as error:
        raise _not_writable(folder, error) from error


def check_regular_file(path: Path) -> None:
    """Checks a file before it is opened: opening a pipe blocks until another process writes to it.

    Raises:
      ExistingFileError: it is a folder, a pipe, a device or a socket.
      OSError: it does not exist, or its state cannot be read.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise _is_folder(path)
    if not stat.S_ISREG(mode):
        raise ExistingFileError(
            f"{path} is a pipe, a device or a socket; expected a regular file; rename or delete it"
        )


def read_file(path: Path) -> bytes:
    """Reads a file, which exists.

    Raises:
      ExistingFileError: see `check_regular_file`.
      FilePermissionError: it may not be read.
    """
    try:
        check_regular_file(path)
        return path.read_bytes()
    except PermissionError as error:
        raise FilePermissionError(
            error.errno, f"{path} cannot be read ({error.strerror}); change its permissions"
        ) from error


def delete_file(path: Path) -> None:
    """Deletes a file or link if there is one. A folder of its name stays.

    Raises:
      FilePermissionError: it may not be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        return
    try:
        path.unlink(missing_ok=True)
    except PermissionError as error:
        raise _not_writable(path, error) from error


def _is_folder(path: Path) -> ExistingFileError:
    return ExistingFileError(f"{path} is a folder; expected a file; rename or delete the folder")


def _not_writable(path: Path, error: PermissionError) -> FilePermissionError:
    return FilePermissionError(
        error.errno, f"{path} cannot be written ({error.strerror}); make its folder writable"
    )


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` that replaces `path` if the block succeeds.

    Creates the parent folder. If the block raises, the temporary file is deleted and `path` is
    unchanged. A killed process may leave a file named `.NAME.*.partial`. An OSError of the block
    that names no file gets the name of `path`, since a failed write on a full disk names none.

    Args:
      path: the file to write.
    """
    path = Path(path)
    create_folder(path.parent)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except IsADirectoryError as error:
        raise _is_folder(path) from error
    except OSError as error:
        if not isinstance(error, UserError) and error.filename in (None, str(temporary)):
            if isinstance(error, PermissionError):
                raise _not_writable(path, error) from error
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8, to `path` in one atomic step."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_or_restore(path: Path, content: bytes) -> None:
    """Appends bytes; creates the file and its folder. A failed write is undone.

    Raises:
      OSError: the file cannot be written; it is truncated to its previous length.
    """
    create_folder(path.parent)
    # Unbuffered: closing a buffered file would write the rest of the bytes after the failure.
    with path.open("ab", buffering=0) as file:
        length, left = file.seek(0, os.SEEK_END), memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), length)
            error.filename = str(path)
            raise


def write_json(path: str | Path, value: Any, *, allow_nan: bool = True) -> None:
    """Writes `value` as indented JSON in one atomic step.

    Args:
      path: the file to write.
      value: what `json.dumps` accepts.
      allow_nan: whether NaN and infinities are written, which strict JSON parsers reject.

    Raises:
      ValueError: `value` holds a NaN or an infinity and `allow_nan` is False.
    """
    write_atomically(path, json.dumps(value, indent=1, allow_nan=allow_nan) + "\n")
