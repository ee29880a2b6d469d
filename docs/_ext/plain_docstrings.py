"""Reads docstrings as plain text with code between backticks, instead of as full reStructuredText.

Without this, `*args`, a trailing underscore or `a | b` in a docstring would be markup. Classes show
the signature of their `__init__`, where a metaclass (Flax's) hides it.
"""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

_CODE = re.compile(r"(`[^`]+`)")
_MARKUP = re.compile(r"([*|]|(?<=\w)_(?=\W|$))")


def escape(line: str) -> str:
    """Escapes reStructuredText markup outside of backticks."""
    parts = _CODE.split(line)
    return "".join(p if i % 2 else _MARKUP.sub(r"\\\1", p) for i, p in enumerate(parts))


def escape_docstring(
    app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escapes a docstring's lines in place, except in literal blocks and doctests."""
    literal, indent = False, 0
    for i, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if literal and line.strip() and depth <= indent:
            literal = False
        if not literal and not line.lstrip().startswith((">>>", "..")):
            literal, indent = line.rstrip().endswith("::"), depth
            lines[i] = escape(line)


def skip_tuple_fields(
    app: Sphinx, kind: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out a named tuple's automatic "Alias for field number 0"; its class lists them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def class_signature(
    app: Sphinx, kind: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """The signature of `__init__`, without `self`, instead of a metaclass's `*args, **kwargs`."""
    if kind != "class" or not (signature or "").startswith("(*args"):
        return None
    if getattr(obj, "_is_protocol", False):  # is not called
        return "", ""
    init = inspect.signature(obj.__init__)
    without_self = init.replace(parameters=list(init.parameters.values())[1:])
    return stringify_signature(without_self, unqualified_typehints=True), ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Runs before napoleon, which turns Google sections into markup."""
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
    app.connect("autodoc-process-signature", class_signature)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    return {"parallel_read_safe": True}
