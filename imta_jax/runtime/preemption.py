"""Preemption: SIGTERM, which schedulers send before they take a machine away, and Ctrl-C.

Training saves a checkpoint first. Where nothing would be lost, the process ends at once. Python
calls signal handlers only between two instructions of the main thread, which can spend minutes in
the compiler. So the interpreter writes signals to a pipe, which a thread reads.
"""

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator

# `EX_TEMPFAIL` of sysexits.h: a scheduler that restarts failed jobs restarts this one.
EXIT_CODE = 75
# 128 + SIGINT, as shells report a program that Ctrl-C ended: a second Ctrl-C, nothing saved.
FORCED_EXIT_CODE = 130

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# With several processes, JAX stops them at the sync point after the highest that any of them has
# reached. So sync points are numbered without gaps, in all phases of the process.
_sync_points = itertools.count(1)


class Interrupted(Exception):
    """Training was preempted and its state is saved; the same command resumes it."""


class StopRequest:
    """Whether training was asked to stop.

    Attributes:
      has_steps: whether a step was trained that a checkpoint would save.
      requested: whether this process received a signal.
    """

    def __init__(self) -> None:
        self.requested = self.has_steps = False

    def set(self, *_: object) -> None:
        """Requests a stop; a signal handler."""
        self.requested = True

    def should_stop(self) -> bool:
        """Whether to stop now, with the same result in all processes. Call it after each dispatch.

        All processes must call this equally often, and nothing else may use JAX's sync points.
        """
        import jax  # Imported late: handlers are installed before JAX is imported.
        from jax.experimental import multihost_utils

        self.has_steps = True
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return self.requested


class _SignalThread:
    """The thread that handles signals, and the training that it stops."""

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        self.several_processes = False
        self._interrupts = 0

    def start(self) -> None:
        """Installs handlers for SIGTERM and Ctrl-C; call it in the main thread."""
        # Sockets, because Windows has no non-blocking pipes.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self.install()
        threading.Thread(target=self._run, name="signals", daemon=True).start()
        if hasattr(signal, "pthread_sigmask"):  # Not on Windows.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def install(self) -> None:
        """Installs handlers that do nothing, without which Python does not write to the pipe."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # As in a shell's background jobs.
                signal.signal(number, lambda *_: None)

    def _run(self) -> None:
        while True:
            for number in self._read.recv(64):
                if number in SIGNALS:
                    self._handle(signal.Signals(number))

    def _handle(self, number: signal.Signals) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _end(f"{name} again: ended without saving", FORCED_EXIT_CODE)
        if self.several_processes:  # All processes stop at the same step.
            _write_line(f"{name}: stopping all processes; Ctrl-C again ends this one at once")
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.request and self.request.has_steps:
            self.request.set()
            _write_line(f"{name}: saving a checkpoint; Ctrl-C again ends at once")
        else:
            _end(f"{name}: nothing to save; run the same command to resume", EXIT_CODE)


_signals: _SignalThread | None = None


def hold_signals() -> None:
    """Delays signals until `install_signal_handlers`, also while the process restarts itself."""
    if hasattr(signal, "pthread_sigmask"):  # Not on Windows.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def install_signal_handlers() -> None:
    """Makes SIGTERM and Ctrl-C save a checkpoint while training, and end the process elsewhere.

    Call it once, first in the main thread of a program. The exit code is `EXIT_CODE`, or
    `FORCED_EXIT_CODE` after a second Ctrl-C.
    """
    global _signals
    _signals = _SignalThread()
    _signals.start()


def configure_signals_after_join(count: int) -> None:
    """Configures signals after `distributed.join_processes`, which gives SIGTERM to JAX's runtime.

    Args:
      count: number of processes of the run. With several, JAX's runtime keeps SIGTERM and stops all
        of them at the same step.
    """
    if _signals is None:
        return
    _signals.several_processes = count > 1
    if count == 1:
        _signals.install()


def end_process_on_signals() -> None:
    """Makes signals end this process at once from now on, also with several processes.

    Call it when training has ended: JAX's runtime keeps SIGTERM, and only training polls it.
    """
    if _signals is not None and _signals.several_processes:
        _signals.several_processes = False
        signal.signal(signal.SIGTERM, lambda *_: None)  # Python then writes it to the pipe.


def _write_line(message: str) -> None:
    """Writes to stderr without its buffer, which the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode())


def _end(message: str, code: int) -> None:
    """Ends the process without waiting for the compiler and for other threads."""
    _write_line(message)
    os._exit(code)


@contextlib.contextmanager
def preemption_guard() -> Iterator[StopRequest]:
    """Turns SIGTERM and Ctrl-C into a stop request inside the block.

    With several processes, JAX's runtime handles SIGTERM. Without `install_signal_handlers`, as in
    a notebook, a second Ctrl-C raises a KeyboardInterrupt. Outside the main thread, where Python
    cannot install handlers, signals keep their handlers.
    """
    import jax

    request = StopRequest()
    if _signals is not None:
        with _registered(_signals, request):
            yield request
    elif jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield request
    else:
        with _handled_in_python(request):
            yield request


@contextlib.contextmanager
def _registered(signals: _SignalThread, request: StopRequest) -> Iterator[None]:
    signals.request = request
    try:
        yield
    finally:
        signals.request = None
    if request.requested:  # After the last check of the loop.
        _end("stopped after the last epoch, saved; run the same command to resume", EXIT_CODE)


@contextlib.contextmanager
def _handled_in_python(request: StopRequest) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        request.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, request.set)
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
