"""Progress of long work: a bar on a terminal, periodic lines in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_LOG_SECONDS = 30.0


def progress_bar(*, total: int, done: int = 0, description: str, unit: str = "step") -> tqdm:
    """A progress bar; shown on a terminal only.

    Args:
      total: number of units, including `done`.
      done: units that were finished before.
      description: text before the bar.
      unit: name of a unit.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        disable=not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


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
    """Yields items and shows a progress bar with the estimated time left.

    Args:
      items: the items to yield.
      total: number of units, including `done`.
      done: units that were finished before.
      description: text before the bar.
      unit: name of a unit.
      size_of: number of units in an item.
      log: logger that gets a line every 30 s without a terminal; None for no lines.
    """
    on_terminal = sys.stderr.isatty()
    bar = progress_bar(total=total, done=done, description=description, unit=unit)
    start = last = time.monotonic()
    i = 0
    with bar:
        for item in items:
            yield item
            i += size_of(item)
            bar.update(size_of(item))
            now = time.monotonic()
            if log is not None and not on_terminal and now - last > _LOG_SECONDS:
                last, left = now, format_duration((now - start) / i * (total - done - i))
                log.info("%s: %d of %d, about %s left", description, done + i, total, left)


def write_line(log: logging.Logger, message: str) -> None:
    """Writes a line above the bar on a terminal, and to the log elsewhere, at level INFO."""
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        tqdm.write(message, file=sys.stderr)
    else:
        log.info(message)


def format_duration(seconds: float) -> str:
    """Formats seconds for messages: "2 h 05 min", "3 min 20 s", "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
