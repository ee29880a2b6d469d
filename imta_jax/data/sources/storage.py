"""Local and bucket paths, and clear errors for those that cannot be read."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imta_jax.data.tensorflow_import import import_tensorflow, short_message
from imta_jax.errors import FilePermissionError, InputError, MissingFileError, StorageError

if TYPE_CHECKING:
    import tensorflow as tf


def is_path(source: str) -> bool:
    """Whether a source is a path: it starts like one, or such a folder exists."""
    return source.startswith(("/", "./", "../", "~")) or is_remote(source) or Path(source).is_dir()


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, such as gs:// or s3://."""
    return "://" in path


def absolute(path: str) -> str:
    """The absolute path, without a trailing slash."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def file_state(path: str) -> tuple[int, int, bool]:
    """Modification time in ns, size in bytes and read permission of a file.

    Zeros for a file that cannot be inspected, and in a bucket, where requests for all files would
    take hours.
    """
    if is_remote(path):
        return 0, 0, False
    try:
        found = os.stat(path)
    except OSError:  # for example a broken link; reading the file reports it
        return 0, 0, False
    return found.st_mtime_ns, found.st_size, os.access(path, os.R_OK)


@contextlib.contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turns errors of TensorFlow's file systems into Python's, with advice.

    Args:
      path: the path that is read, for messages.

    Raises:
      PermissionError: No permission, or a bucket that this user cannot reach.
      FileNotFoundError: A file is missing.
      ValueError: A scheme that TensorFlow does not support.
      OSError: Any other error. Python's own OSErrors pass unchanged.
    """
    tf = import_tensorflow()
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        # TFDS re-raises TensorFlow's errors as RuntimeErrors.
        found = error if isinstance(error, tf.errors.OpError) else error.__cause__
        if not isinstance(found, tf.errors.OpError):
            raise
        raise _translated(found, path) from error


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
