"""Checksums of a checkpoint's arrays, which TensorStore does not verify itself.

A changed byte in a file of arrays would otherwise give other weights without an error. The file is
written before the checkpoint gets its name. Checkpoints of earlier versions may have none and are
not checked.
"""

import hashlib
import json
import logging
import os
from pathlib import Path

from imta_jax.errors import InputError, message_of
from imta_jax.runtime.files import write_json
from imta_jax.training.checkpoint_manager import ARRAY_ITEMS

_log = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"
_NOT_NEEDED = "array_metadatas"  # Orbax restores without it.


def write_checksums(checkpoint: str | os.PathLike[str]) -> None:
    """Writes the checksums of a checkpoint's arrays into its folder; logs if that fails."""
    checkpoint = Path(checkpoint)
    try:
        digests = {name: _digest(checkpoint / name) for name in _array_files(checkpoint)}
        if digests:
            write_json(checkpoint / CHECKSUMS, digests)
    except OSError as error:
        name = checkpoint.name.partition(".")[0]  # without the suffix of a temporary folder
        _log.warning("%s has no checksums: %s", checkpoint.with_name(name), message_of(error))


def check_checksums(checkpoint: str | os.PathLike[str]) -> None:
    """Compares the files of a checkpoint's arrays with their checksums, if it has some.

    Raises:
      InputError: a file was changed, or the checksums cannot be read.
      OSError: a file is missing.
    """
    checkpoint = Path(checkpoint)
    path = checkpoint / CHECKSUMS
    if not path.exists():
        return
    try:
        expected = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to skip the check") from error
    for name, digest in expected.items():
        if _digest(checkpoint / name) != digest:
            raise InputError(f"{checkpoint / name} was changed: its checksum differs")


def _array_files(checkpoint: Path) -> list[str]:
    files = (path for item in ARRAY_ITEMS for path in (checkpoint / item).rglob("*"))
    names = (path.relative_to(checkpoint) for path in files if path.is_file())
    return sorted(name.as_posix() for name in names if _NOT_NEEDED not in name.parts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
