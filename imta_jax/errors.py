"""Exceptions that a user can fix, and the message for an unknown name.

The command line prints a `UserError` as one line without a traceback. Every other exception is a
bug and keeps its traceback. Each class is also the built-in exception that callers expect. Messages
name the value, what was expected, and the fix.
"""

import difflib
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable

# What NumPy raises for an .npz that is damaged, encrypted, compressed by a method that Python does
# not know, or that claims arrays larger than the memory.
UNREADABLE_ARCHIVE = (
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,  # also NotImplementedError
    SyntaxError,  # in the header of an array, which NumPy parses as Python
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class UserError(Exception):
    """Base class of errors that a user can fix."""

    def __str__(self) -> str:
        """The message. `OSError` would print "[Errno N]" before it."""
        return _os_message(self) or super().__str__()


class InputError(UserError, ValueError):
    """A value, a file's content or a combination of settings cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder, dataset or checkpoint does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder exists and would be overwritten."""


class FilePermissionError(UserError, PermissionError):
    """A file or folder may not be read or written."""


class StorageError(UserError, OSError):
    """Reading or writing failed, for example because a disk is full."""


class FolderInUseError(UserError, BlockingIOError):
    """Another process uses the folder."""


class ServiceError(UserError, ConnectionError):
    """A service on the network does not respond."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package is not installed."""


def message_of(error: BaseException) -> str:
    """The message of an exception; of an `OSError`, path and reason without "[Errno N]"."""
    return _os_message(error) or str(error)


def _os_message(error: BaseException) -> str:
    """Path and reason of an `OSError` with an error number; "" for other exceptions."""
    if not isinstance(error, OSError) or not error.strerror:
        return ""
    path = error.filename
    return f"{os.fsdecode(path)}: {error.strerror}" if path else error.strerror


def closest_first(name: str, valid: Iterable[str]) -> list[str]:
    """The valid names, sorted by similarity to `name`."""

    def similarity(candidate: str) -> float:
        return difflib.SequenceMatcher(None, name, candidate).ratio()

    return sorted(valid, key=lambda candidate: (-similarity(candidate), candidate))


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> InputError:
    """Makes the error for a name that is not valid; the message lists the closest name first.

    Args:
      kind: what is named, for example "dataset"; part of the message.
      name: the unknown name.
      valid: all valid names.

    Returns:
      The error, to be raised by the caller.
    """
    names = ", ".join(closest_first(str(name), valid))
    return InputError(f"unknown {kind} {name!r}; valid, the closest first: {names}")
