"""The policy for failed writes: a full or read-only disk stops training or is only logged."""

import contextlib
import dataclasses
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from imta_jax.errors import StorageError, unknown_name

_log = logging.getLogger(__name__)

POLICIES = ("stop", "continue")

# Errors of the disk, which are not bugs -> what to do.
DISK_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "delete files, or ask for a larger quota",
    errno.EROFS: "mount the disk with write access",
    errno.EFBIG: "raise the limit of the file size (ulimit -f)",
}
_OTHER_REMEDY = "check the disk and the permissions of the folder"


def write_remedy(number: int | None) -> str:
    """What to do after a failed write with an error number of the operating system."""
    return DISK_REMEDIES.get(number or 0, _OTHER_REMEDY)


@dataclasses.dataclass(frozen=True)
class WriteErrorPolicy:
    """What happens when a file cannot be written.

    Attributes:
      policy: "stop", or "continue" with a logged error.

    Raises:
      InputError: an unknown policy.
    """

    policy: str

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise unknown_name("config.checkpoint.on_write_error", self.policy, POLICIES)

    @contextlib.contextmanager
    def writing(self, content: str, folder: Path, required: bool = False) -> Iterator[None]:
        """Applies the policy to an OSError of the block.

        Args:
          content: description of what the block writes, for messages.
          folder: where it is written.
          required: whether training cannot continue without it under any policy.

        Raises:
          StorageError: the write failed and the policy is to stop; the message says what to do.
        """
        try:
            yield
        except OSError as error:
            number = error.errno or errno.EIO
            reason = os.strerror(number) if error.errno else str(error)
            message = f"{content} cannot be written to {folder} ({reason})"
            if self.policy == "continue" and not required:
                _log.error("%s; training continues without it", message)
                return
            raise StorageError(
                number,
                f"{message}; {write_remedy(number)}, then run the same command: training resumes"
                " from the last checkpoint",
            ) from error


# Status codes of TensorStore without an error number of the operating system, as from buckets.
_STATUS_CODES = {"RESOURCE_EXHAUSTED": errno.ENOSPC, "PERMISSION_DENIED": errno.EACCES}


@contextlib.contextmanager
def storage_errors_as_os_errors() -> Iterator[None]:
    """Raises TensorStore's storage errors as OSErrors; it raises them as ValueErrors."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        code = message.partition("[os_error_code='")[2].partition("'")[0]
        status = (number for name, number in _STATUS_CODES.items() if message.startswith(name))
        number = int(code) if code else next(status, None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number)) from error
