"""Errors that reach a user: what was found, what was expected, what to do next."""

import difflib
from collections.abc import Iterable


def closest_first(found: str, valid: Iterable[str]) -> list[str]:
    """Orders the valid names by likeness to `found`, the likeliest first."""
    return sorted(
        valid, key=lambda name: (-difflib.SequenceMatcher(None, found, name).ratio(), name)
    )


def unknown_name(kind: str, found: object, valid: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not one of the valid ones, which it lists closest first.

    Args:
      kind: what was to be named, e.g. "dataset"; opens the message.
      found: the name given.
      valid: the names that would have worked.
    """
    names = ", ".join(closest_first(str(found), valid))
    return ValueError(f"unknown {kind} {found!r}; valid, the closest first: {names}")
