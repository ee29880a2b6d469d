"""Paths that users give, read once where they enter the program."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from imta_jax.errors import FilePermissionError, InputError

# Of any form: file:///x, file://localhost/x, and file:/x, to which `Path` shortens the first.
_FILE_ADDRESS = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)?", re.DOTALL)
# `Path` shortens "gs://bucket" to "gs:/bucket". A drive such as "C:/" has one letter.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def make_working_directory_importable() -> None:
    """Adds the working directory to the end of `sys.path`, where console scripts do not have it."""
    if os.getcwd() not in map(os.path.abspath, sys.path):  # "" is the working directory
        sys.path.append(os.getcwd())


def without_file_scheme(path: str) -> str:
    """The path of a file:// address, which is not unquoted, as in TensorFlow; else `path`.

    Raises:
      InputError: the address has another host than localhost, or no path.
    """
    match = _FILE_ADDRESS.fullmatch(path)
    if match is None:
        return path
    if match["host"] not in (None, "", "localhost") or not match["path"]:
        raise InputError(f"{path} is not the address of a local file; expected file:///PATH")
    return match["path"]


def reason_missing(path: str | os.PathLike[str]) -> str:
    """Why a path does not exist: it, or a folder above it, may be a link that leads nowhere."""
    absolute = Path(path).absolute()
    for part in reversed((absolute, *absolute.parents)):
        if part.is_symlink() and not os.path.exists(part):
            return f"{part} is a {_kind_of_link(part)} to {os.readlink(part)!r}"
    return f"{absolute} does not exist"


def _kind_of_link(path: Path) -> str:
    try:
        os.stat(path)
    except OSError as error:
        return "circular link" if error.errno == errno.ELOOP else "broken link"
    return "link"


def local_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The absolute path of a file or folder on a mounted file system; `~` is the home folder.

    An address such as file:///x is the path /x.

    Shells leave `~` unexpanded in `--workdir=~/runs`.

    Args:
      name: what is given, for messages, for example "--workdir".
      value: the path, which need not exist.

    Raises:
      InputError: the path is empty, is an address such as gs://, names an unknown user's home, or
        is too long for the file system.
      FilePermissionError: a folder above it may not be opened.
    """
    path = without_file_scheme(os.fspath(value))
    if not path.strip():
        raise InputError(f"{name} is empty; expected a path, such as runs/quickstart")
    if _SCHEME.match(path):
        raise InputError(
            f"{name}={path} is not a local path; expected a path on a mounted file system. Mount"
            " the bucket, or copy the files with the bucket's tools before or afterwards"
        )
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise InputError(f"{name}={path} names no user's home folder; write ./{path} for a name")
    _check_accessible(name, path, expanded)
    return Path(expanded).absolute()


def _check_accessible(name: str, path: str, expanded: str) -> None:
    """Raises an error if the system rejects the path, whether or not the file exists."""
    try:
        os.lstat(expanded)
    except PermissionError as error:
        raise FilePermissionError(
            error.errno,
            f"{name}={path} cannot be opened: permission denied; run chmod u+rx on the folders"
            " above it, or choose another path",
        ) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{name}={path} cannot be a path: {error.strerror}; expected names of at most 255"
                " bytes"
            ) from error


def path_argument(name: str) -> Callable[[str], Path]:
    """The `type` of an `argparse` argument that is a local path; see `local_path`."""

    def read(value: str) -> Path:
        try:
            return local_path(name, value)
        except (InputError, FilePermissionError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read
