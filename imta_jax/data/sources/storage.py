"""Paths that may lie in a bucket, and what keeps them from being read, told plainly."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imta_jax.data.tensorflow_import import import_tensorflow, short_message

if TYPE_CHECKING:
    import tensorflow as tf


def is_path(source: str) -> bool:
    """Whether a source is meant as a path: it starts like one, or there is such a folder."""
    return source.startswith(("/", "./", "../", "~")) or is_remote(source) or Path(source).is_dir()


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, as those of buckets do: gs://, s3://."""
    return "://" in path


def absolute(path: str) -> str:
    """The path from the root on; those of buckets are so already."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def changed(path: str) -> tuple[int, int, bool]:
    """When a file last changed, in ns, its bytes, and whether this user may read it.

    Zeros for one that cannot be looked at, and in a bucket, where asking for each would take hours.
    """
    if is_remote(path):
        return 0, 0, False
    try:
        found = os.stat(path)
    except OSError:  # a link to nowhere, say: reading it will tell
        return 0, 0, False
    return found.st_mtime_ns, found.st_size, os.access(path, os.R_OK)


@contextlib.contextmanager
def opening(path: str) -> Iterator[None]:
    """Turns what TensorFlow's file systems raise inside into errors that say what to do.

    Raises:
      PermissionError: refused, or a bucket that cannot be reached as this user.
      FileNotFoundError: a file that should be there is not.
      ValueError: a scheme that TensorFlow does not know.
      OSError: anything else a file system has against it; its own OSErrors pass unchanged.
    """
    tf = import_tensorflow()
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        found = error if isinstance(error, tf.errors.OpError) else error.__cause__
        if not isinstance(found, tf.errors.OpError):  # TFDS hands them on as RuntimeErrors
            raise
        raise _plainly(found, path) from error


def _plainly(error: "tf.errors.OpError", path: str) -> Exception:
    errors = import_tensorflow().errors
    reason = short_message(error)
    told = f"cannot read {path}: {reason}"
    if isinstance(error, errors.UnimplementedError) and is_remote(path):
        return ValueError(
            f"{path}: TensorFlow cannot read {path.partition('://')[0]}:// ({reason})"
        )
    if isinstance(error, errors.NotFoundError):
        return FileNotFoundError(errno.ENOENT, told)
    # Of what was reached and read: nothing that logging in would mend.
    if isinstance(error, (errors.DataLossError, errors.InvalidArgumentError)):
        return OSError(
            errno.EIO, f"{told}; is a file damaged? Bring it back whole, or prepare the data anew"
        )
    if is_remote(path):
        return PermissionError(
            errno.EACCES,
            f"cannot read {path} ({reason}); check the name and the network, and log in:"
            " `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
            " to a key file; on a cloud machine its service account needs the role Storage"
            " Object Viewer",
        )
    if isinstance(error, errors.PermissionDeniedError):
        return PermissionError(errno.EACCES, told)
    return OSError(errno.EIO, told)
