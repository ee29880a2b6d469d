"""Being told to stop: SIGTERM, as schedulers send it before they take a machine away."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# Of sysexits.h, "try again": a scheduler that restarts what failed restarts this.
EXIT_CODE = 75

# Seconds that threads have to end in where nothing is trained: checkpoints are written by then.
PATIENCE = 10

# Processes agree to stop at the question after the last that any of them has asked, by its number:
# so numbers leave none out, whatever a dispatch does of an epoch, and go on from phase to phase.
_questions = itertools.count(1)


class Interrupted(Exception):
    """Training stopped as it was told to, after saving; the same command goes on."""


def exit_when_told() -> None:
    """Makes SIGTERM end the process with `EXIT_CODE` wherever nothing is being trained.

    Of several processes JAX's runtime hears the signal itself, and keeps it.
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> None:
    """Ends the process, after `PATIENCE` also where a thread, as of a download, goes on trying."""
    last = threading.Timer(PATIENCE, os._exit, [EXIT_CODE])
    last.daemon = True
    last.start()
    sys.exit(EXIT_CODE)


class StopRequest:
    """Whether the process was told to stop."""

    def __init__(self) -> None:
        self._told = False

    def tell(self, *_: object) -> None:
        """Notes the request; a signal handler."""
        self._told = True

    def is_due(self) -> bool:
        """Whether to stop now: in all processes at the same question.

        All must ask equally often, and nobody else may ask JAX's runtime.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_questions))
        return self._told


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Takes SIGTERM as a request while inside; JAX's runtime does so for several processes."""
    request = StopRequest()
    # Only the main thread may set handlers; in a notebook's other threads nobody sends signals.
    alone = jax.process_count() == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request.tell)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
