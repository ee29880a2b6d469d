"""Paths that users give, read once where they enter the program."""

import os
import re
from pathlib import Path

from imta_jax.errors import InputError

# `Path` shortens "gs://bucket" to "gs:/bucket". A drive such as "C:/" has one letter.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_folder(name: str, value: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder on a mounted file system; `~` is the home folder.

    Shells leave `~` unexpanded in `--workdir=~/runs`.

    Args:
      name: what is given, for messages, for example "--workdir".
      value: the path; the folder need not exist.

    Raises:
      InputError: the path is empty, is an address such as gs://, or names an unknown user's home.
    """
    given = os.fspath(value)
    if not given.strip():
        raise InputError(f"{name} is empty; expected the path of a folder, such as runs/quickstart")
    if _SCHEME.match(given):
        raise InputError(
            f"{name}={given} is not a local path; expected a folder on a mounted file system. Copy"
            " the run's folder to the bucket afterwards, or mount the bucket"
        )
    expanded = os.path.expanduser(given)
    if given.startswith("~") and expanded == given:
        raise InputError(f"{name}={given} names no user's home folder; write ./{given} for a name")
    return Path(expanded).absolute()
