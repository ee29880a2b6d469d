"""Several processes agree on values of process 0 and on errors of single processes.

A process that raised an error alone would leave the others waiting for it. All processes must call
these functions in the same order, in their main thread. One process does not communicate.
"""

import errno
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from imta_jax.errors import InputError, StorageError, UserError, message_of

Value = TypeVar("Value")


def run_in_first_process(action: Callable[[], object]) -> None:
    """Calls a function in process 0 only. The other processes wait for it and raise its error."""
    raise_in_all_processes(_error_of(action) if jax.process_index() == 0 else None)


def run_in_all_processes(action: Callable[[], Value]) -> Value:
    """Calls a function in every process. An error in one of them is raised in all."""
    results: list[Value] = []
    raise_in_all_processes(_error_of(lambda: results.append(action())))
    return results[0]


def raise_in_all_processes(error: Exception | None) -> None:
    """Raises an error in all processes if at least one process passes one.

    Args:
      error: this process's error, which it raises itself; None if it has none.

    Raises:
      StorageError: another process has an OSError.
      InputError: another process has another error that a user can fix.
      RuntimeError: another process has any other error.
    """
    descriptions = _gather(None if error is None else _description(error))
    if error is not None:
        raise error
    for index, description in enumerate(descriptions):
        if description is not None:
            raise _described(index, *description)


def from_first_process(value: Value) -> Value:
    """The value that process 0 passes, which must be JSON."""
    return _gather(value)[0]


def true_in_all_processes(condition: bool) -> bool:
    """Whether all processes pass True."""
    return all(_gather(condition))


def _gather(value: Any) -> list[Any]:
    """The JSON values of all processes, by index."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    contents = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(contents, sizes, strict=True)]


def _error_of(action: Callable[[], object]) -> Exception | None:
    try:
        action()
    except Exception as error:
        return error
    return None


def _description(error: Exception) -> tuple[str, int, str]:
    """Kind, error number and message of an exception."""
    if isinstance(error, OSError):
        return "storage", error.errno or errno.EIO, message_of(error)
    if isinstance(error, UserError):
        return "input", 0, str(error)
    return "bug", 0, f"{type(error).__name__}: {error}"


def _described(index: int, kind: str, number: int, message: str) -> Exception:
    """The exception for an error of another process."""
    message = f"process {index} failed: {message}"
    if kind == "storage":
        return StorageError(number, message)
    return InputError(message) if kind == "input" else RuntimeError(message)
