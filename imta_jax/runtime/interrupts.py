"""Ctrl-C in commands that save nothing: one line instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from imta_jax.runtime.preemption import FORCED_EXIT_CODE


@contextlib.contextmanager
def interrupts_reported(program: str) -> Iterator[None]:
    """Ends the program with one line and `FORCED_EXIT_CODE` after Ctrl-C in the block.

    Import what takes long inside the block.

    Args:
      program: its name, for the line.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(FORCED_EXIT_CODE)
