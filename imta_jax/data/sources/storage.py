"""Paths that may lie in a bucket, and what keeps them from being read, told plainly."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from imta_jax.data.tensorflow_import import import_tensorflow


def is_path(source: str) -> bool:
    """Whether a source is meant as a path: it starts like one, or there is such a folder."""
    return source.startswith(("/", "./", "../", "~")) or is_remote(source) or Path(source).is_dir()


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, as those of buckets do: gs://, s3://."""
    return "://" in path


def absolute(path: str) -> str:
    """The path from the root on; those of buckets are so already."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


@contextlib.contextmanager
def opening(path: str) -> Iterator[None]:
    """Turns what TensorFlow's file systems raise inside into errors that say what to do.

    Raises:
      PermissionError: refused, or a bucket that cannot be reached as this user.
      OSError: anything else a file system has against it; its own OSErrors pass unchanged.
    """
    tf = import_tensorflow()
    try:
        yield
    except tf.errors.OpError as error:
        reason = (error.message or type(error).__name__).splitlines()[0]
        if is_remote(path):
            raise PermissionError(
                errno.EACCES,
                f"cannot read {path} ({reason}); check the name and the network, and log in:"
                " `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
                " to a key file; on a cloud machine its service account needs the role Storage"
                " Object Viewer",
            ) from error
        denied = isinstance(error, tf.errors.PermissionDeniedError)
        kind = PermissionError if denied else OSError
        raise kind(
            errno.EACCES if denied else errno.EIO, f"cannot read {path}: {reason}"
        ) from error
