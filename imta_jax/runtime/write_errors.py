"""A disk that is full or read-only: told always, and borne or not, as the config says."""

import contextlib
import dataclasses
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from imta_jax.errors import unknown_name

_log = logging.getLogger(__name__)

POLICIES = ("stop", "continue")
# How orbax's storage tells of the operating system's refusals, in errors that are no OSErrors.
_MARKS = ("os_error_code", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED")


@dataclasses.dataclass(frozen=True)
class WriteErrors:
    """What happens when something cannot be written.

    Attributes:
      policy: "stop", or "continue" without what was to be written.

    Raises:
      ValueError: another policy.
    """

    policy: str

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise unknown_name("config.checkpoint.on_write_error", self.policy, POLICIES)

    @contextlib.contextmanager
    def writing(self, what: str, folder: Path, needed: bool = False) -> Iterator[None]:
        """Surrounds a write.

        Args:
          what: is written, for messages.
          folder: where to.
          needed: whether nothing can go on without it, whatever the policy.

        Raises:
          OSError: it failed and the policy is to stop; says what to do.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not any(mark in str(error) for mark in _MARKS):
                raise
            number, told = _cause(error)
            message = f"{what} cannot be written to {folder} ({told})"
            if self.policy == "continue" and not needed:
                _log.error("%s; going on without it", message)
                return
            raise OSError(
                number,
                f"{message}. Make room, or make the folder writable, then start the same command:"
                " it goes on from the last checkpoint that was written",
            ) from error


def _cause(error: Exception) -> tuple[int, str]:
    """The system's number of an error and what it means, out of orbax's long text too."""
    number = getattr(error, "errno", None)
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if number is None and found:
        number = int(found[1])
    if number is None:
        return errno.EIO, str(error).partition("\n")[0][:300]
    return number, os.strerror(number)
