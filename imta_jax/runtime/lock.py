"""One run at a time in one folder."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds a folder while inside; the system lets go of it however the process ends.

    Args:
      folder: made if need be.

    Raises:
      BlockingIOError: another process holds it; says which.
      OSError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise OSError(
            error.errno,
            f"--workdir={folder} is no folder that can be made and written ({error.strerror}); give"
            " another",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(
                f"another run is at work in {folder} ({file.read().strip() or 'unknown process'});"
                " wait for it or stop it, or give another --workdir"
            ) from error
        except OSError as error:  # some network file systems know no locks
            _log.warning("%s cannot be locked (%s): start no second run in it", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
