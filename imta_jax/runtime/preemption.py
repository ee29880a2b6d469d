"""Preemption handling: SIGTERM, which schedulers send before they take a machine away."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# `EX_TEMPFAIL` of sysexits.h: a scheduler that restarts failed jobs restarts this one.
EXIT_CODE = 75

# Seconds that other threads get to finish when SIGTERM arrives outside training.
GRACE_SECONDS = 10

# With several processes, JAX stops them at the sync point after the highest that any of them has
# reached. So sync points are numbered without gaps, in all phases of the process.
_sync_points = itertools.count(1)


class Interrupted(Exception):
    """Training was preempted and its state is saved; the same command resumes it."""


def install_sigterm_handler() -> None:
    """Makes SIGTERM end the process with `EXIT_CODE` outside of training.

    With several processes, JAX's runtime handles the signal.
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _exit)


def _exit(*_: object) -> None:
    """Exits, after `GRACE_SECONDS` even if a thread, such as a download, does not finish."""
    deadline = threading.Timer(GRACE_SECONDS, os._exit, [EXIT_CODE])
    deadline.daemon = True
    deadline.start()
    sys.exit(EXIT_CODE)


class StopRequest:
    """Whether training was asked to stop."""

    def __init__(self) -> None:
        self._requested = False

    def set(self, *_: object) -> None:
        """Requests a stop; a signal handler."""
        self._requested = True

    def should_stop(self) -> bool:
        """Whether to stop now, with the same result in all processes.

        All processes must call this equally often, and nothing else may use JAX's sync points.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return self._requested


@contextlib.contextmanager
def preemption_guard() -> Iterator[StopRequest]:
    """Turns SIGTERM into a stop request inside the block.

    With several processes, JAX's runtime handles the signal. Outside the main thread, where Python
    cannot install handlers, SIGTERM keeps its handler.
    """
    request = StopRequest()
    one_process = jax.process_count() == 1
    if not one_process or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request.set)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
