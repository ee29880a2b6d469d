"""File names and messages as text that a terminal can print."""

import os
from pathlib import Path


def file_name(path: Path) -> str:
    """The path as text. Bytes that are not UTF-8 are replaced by U+FFFD."""
    return os.fsencode(path).decode(errors="replace")


def on_one_line(text: str) -> str:
    """The text with U+FFFD for control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def printable(text: str, encoding: str | None) -> str:
    """The text with a replacement for characters that an encoding lacks; default UTF-8."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)
