"""Errors in threads of libraries, which are printed only if the run ends with a bug.

After a failed read or write, Orbax and TensorStore raise the error in the main thread, and their
other threads print hundreds of tracebacks before the message.
"""

import functools
import logging
import sys
import threading
import traceback
import warnings
from collections import deque
from types import TracebackType
from typing import Any

_MAX_HELD = 20
_held: deque[str] = deque(maxlen=_MAX_HELD)


def hold_background_errors() -> None:
    """Holds back errors of threads other than the main one, and those without a thread."""
    main = threading.main_thread()

    def for_any_thread(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is main:
            sys.__excepthook__(kind, error, trace)
        else:  # C++ code calls the hook from its own threads.
            _hold(error)

    sys.excepthook = for_any_thread
    threading.excepthook = lambda caught: _hold(caught.exc_value)
    sys.unraisablehook = lambda caught: _hold(caught.exc_value)
    # JAX warns once per program that it cannot cache.
    for action in ("reading", "writing"):
        warnings.filterwarnings("ignore", f"Error {action} persistent compilation cache entry")


@functools.cache  # once per process
def ignore_errors_of_failed_reads() -> None:
    """Ignores what other threads print after Orbax failed to read a checkpoint and raised it.

    It ignores two kinds of errors only: callbacks of TensorStore for an event loop that Orbax has
    closed, and asyncio's log of reads whose result nobody waited for.
    """
    previous = sys.unraisablehook

    def without_closed_loops(caught: Any) -> None:
        if str(caught.exc_value) != "Event loop is closed":
            previous(caught)

    sys.unraisablehook = without_closed_loops
    logging.getLogger("asyncio").addFilter(_is_not_of_a_read)


def _is_not_of_a_read(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ValueError) or "tensorstore_spec=" not in str(error)


def _hold(error: BaseException | None) -> None:
    if error is not None:
        _held.append("".join(traceback.format_exception(error)))


def print_held_errors() -> None:
    """Prints the last errors that were held back to stderr."""
    while _held:
        print(f"in a background thread:\n{_held.popleft()}", file=sys.stderr)
