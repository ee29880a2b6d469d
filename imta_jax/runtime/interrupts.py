"""Ctrl-C, missing packages and closed pipes in commands that save nothing: no traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator

from imta_jax.runtime.optional_packages import explained
from imta_jax.runtime.preemption import FORCED_EXIT_CODE


@contextlib.contextmanager
def interrupts_reported(program: str) -> Iterator[None]:
    """Ends the program with one line after Ctrl-C in the block, or without a package of an extra.

    The exit code is `FORCED_EXIT_CODE` after Ctrl-C, else 1. It is 1 without a line if the reader
    of the output has ended, such as `head`.

    Import what takes long inside the block.

    Args:
      program: its name, for the line.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(FORCED_EXIT_CODE)
    except ModuleNotFoundError as error:
        missing = explained(error, program)
        if missing is None:
            raise
        sys.exit(f"{program}: error: {missing}")
