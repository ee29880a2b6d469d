"""How long work is shown: a bar on a terminal, now and then a plain line in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_SECONDS = 30.0


def with_progress(
    items: Iterable[Item],
    *,
    total: int,
    done: int = 0,
    description: str,
    unit: str = "step",
    size_of: Callable[[Item], int] = lambda item: 1,
    log: logging.Logger | None = None,
) -> Iterator[Item]:
    """Passes items on under a bar with an estimate of the time left.

    Args:
      items: to be passed on.
      total: how many there are with those already `done`.
      done: where the bar starts.
      description: before the bar.
      unit: what is counted.
      size_of: how many of them an item is.
      log: gets a line every half minute where there is no terminal; None for none.
    """
    on_terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        disable=not on_terminal,
        leave=False,
        dynamic_ncols=True,
    )
    start = last = time.monotonic()
    i = 0
    with bar:
        for item in items:
            yield item
            i += size_of(item)
            bar.update(size_of(item))
            now = time.monotonic()
            if log is not None and not on_terminal and now - last > _LOG_SECONDS:
                last, left = now, (now - start) / i * (total - done - i)
                log.info(
                    "%s: %d of %d, about %s left", description, done + i, total, duration(left)
                )


def write_line(log: logging.Logger, message: str) -> None:
    """A line above the bar on a terminal, and in the log elsewhere, if the log takes it."""
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        tqdm.write(message, file=sys.stderr)
    else:
        log.info(message)


def duration(seconds: float) -> str:
    """Seconds as a person says them: "2 h 05 min", "3 min 20 s", "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
