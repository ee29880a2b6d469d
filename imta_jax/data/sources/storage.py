"""Local and bucket paths, and clear errors for those that cannot be read."""

import contextlib
import errno
import logging
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from imta_jax.data.tensorflow_import import import_tensorflow, short_message
from imta_jax.errors import FilePermissionError, InputError, MissingFileError, StorageError
from imta_jax.runtime.paths import without_file_scheme

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)
_LOCAL_SCHEME = "file:/"
_PATH_STARTS = ("/", "./", "../", "~", _LOCAL_SCHEME)
_MAX_REMOTE_STATES = 20_000
_PARALLEL_REQUESTS = 64


def is_path(source: str) -> bool:
    """Whether a source is a path: it starts like one, or such a folder or broken link exists."""
    if "://" in source or source.startswith(_PATH_STARTS):
        return True
    return os.path.isdir(source) or (os.path.islink(source) and not os.path.exists(source))


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, such as gs:// or s3://, other than file://."""
    return "://" in path and not path.startswith(_LOCAL_SCHEME)


def can_be_moved(source: str) -> bool:
    """Whether a source is a local file or folder, which can be renamed, copied or linked."""
    return not is_remote(source) and (source.endswith(".npz") or is_path(source))


def absolute(path: str) -> str:
    """The absolute path, without a trailing slash; of a file:// address, the local path."""
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(without_file_scheme(path)))


def check_permitted(source: str) -> None:
    """Checks that the system permits access to a source that is a local file or folder.

    Args:
      source: `config.data.source`. It need not exist.

    Raises:
      FilePermissionError: a folder on the path may not be opened, or the folder not be listed.
      StorageError: the path cannot be used, for example because a name is too long.
    """
    if not can_be_moved(source):
        return
    path = absolute(source)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        raise _not_permitted(path) from error
    except OSError as error:
        raise StorageError(
            error.errno,
            f"config.data.source is {path}, which cannot be used: {error.strerror}; expected the"
            " path of a file or folder",
        ) from error
    if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
        raise _not_permitted(path)


def _not_permitted(path: str) -> FilePermissionError:
    return FilePermissionError(
        errno.EACCES,
        f"config.data.source is {path}, which this user may not read: permission denied; run"
        " chmod u+rX on it and on the folders above it, or copy the data",
    )


class FileState(NamedTuple):
    """What changes when a file changes.

    Attributes:
      mtime_ns: modification time in ns.
      size: size in bytes.
      readable: read permission; True in a bucket.
      regular: whether it is a regular file, and not a folder, a pipe or a broken link.
    """

    mtime_ns: int = 0
    size: int = 0
    readable: bool = False
    regular: bool = False


UNKNOWN_STATE = FileState(0, 0, True, True)  # of a file in a bucket that was not looked up


def file_states(paths: Sequence[str]) -> list[FileState]:
    """The states of files, without reading them.

    Each file in a bucket takes a request, so that beyond 20,000 files their states are not looked
    up, and files that are replaced by others of the same name are not noticed. Their sizes are then
    looked up when they are indexed.
    """
    if not paths or not is_remote(paths[0]):
        return [_local_state(path) for path in paths]
    if len(paths) > _MAX_REMOTE_STATES:
        _log.info("%s: not checking whether these %d files have changed", paths[0], len(paths))
        return [UNKNOWN_STATE] * len(paths)
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as threads:
        return list(threads.map(_remote_state, paths))


def _local_state(path: str) -> FileState:
    try:
        status = os.stat(path)
    except PermissionError:  # of a folder on the path; reading the file reports it
        return FileState(regular=True)
    except OSError:  # for example a broken link
        return FileState()
    regular = stat.S_ISREG(status.st_mode)
    return FileState(status.st_mtime_ns, status.st_size, os.access(path, os.R_OK), regular)


def _remote_state(path: str) -> FileState:
    tf = import_tensorflow()
    try:
        status = tf.io.gfile.stat(path)
    except tf.errors.OpError:  # reading the file reports it
        return UNKNOWN_STATE
    return FileState(status.mtime_nsec, status.length, True, not status.is_directory)


@contextlib.contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turns errors of TensorFlow's file systems into Python's, with advice.

    Args:
      path: the path that is read, for messages.

    Raises:
      PermissionError: no permission, or a bucket that this user cannot reach.
      FileNotFoundError: a file is missing.
      ValueError: a scheme that TensorFlow does not support.
      OSError: any other error. Python's own OSErrors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        tf = sys.modules.get("tensorflow")
        if tf is None:
            raise
        # TFDS re-raises TensorFlow's errors as RuntimeErrors.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, tf.errors.OpError):
            raise
        raise _translated(cause, path) from error


def _translated(error: "tf.errors.OpError", path: str) -> Exception:
    errors = import_tensorflow().errors
    reason = short_message(error)
    message = f"cannot read {path}: {reason}"
    if isinstance(error, errors.UnimplementedError) and is_remote(path):
        return InputError(
            f"{path}: TensorFlow cannot read {path.partition('://')[0]}:// ({reason})"
        )
    if isinstance(error, errors.NotFoundError):
        return MissingFileError(errno.ENOENT, message)
    # The data were read, so that logging in would not help.
    if isinstance(error, (errors.DataLossError, errors.InvalidArgumentError)):
        return StorageError(
            errno.EIO,
            f"{message}; a file may be damaged: restore it, or prepare the dataset again",
        )
    if is_remote(path):
        return FilePermissionError(
            errno.EACCES,
            f"cannot read {path} ({reason}); check the name and the network, and log in:"
            " `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
            " to a key file; on a cloud machine its service account needs the role Storage"
            " Object Viewer",
        )
    if isinstance(error, errors.PermissionDeniedError):
        return FilePermissionError(errno.EACCES, message)
    return StorageError(errno.EIO, message)
