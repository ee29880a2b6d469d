"""Sphinx directives that write reference material from the code while the site is built.

`config-fields PART` and `config-presets` make tables of config fields, `launch-flags` a table of
the flags of `launch.py`, `command-help MODULE` shows a command's `--help`, and `public-api PACKAGE`
documents the names in a package's `__all__`.
"""

import contextlib
import importlib
import inspect
import io
import os
import runpy
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

import config_fields
from absl import flags
from docutils import nodes
from docutils.statemachine import StringList
from plain_docstrings import escape
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ConfigFields(SphinxDirective):
    """A table of the fields of one part of a config; of `run`, those that are in no part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Builds the table."""
        part = self.arguments[0]
        prefix = "" if part == "run" else f"{part}."
        fields = [
            field
            for field in config_fields.config_fields()
            if (field.path.startswith(prefix) if prefix else "." not in field.path)
        ]
        if not fields:
            raise self.error(f"no config fields in {part!r}")
        rows = [
            (f"`{f.path.removeprefix(prefix)}`", _value(f.default), f"{f.description}\n{f.valid}")
            for f in fields
        ]
        return [_table(("field", "default", "description"), rows, (22, 18, 60))]


class ConfigPresets(SphinxDirective):
    """A table of what config files and presets change: `file` or `file:preset`, one per line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Builds the table."""
        rows = []
        for line in self.content:
            name, _, preset = line.partition(":")
            changes = config_fields.differences(name, preset or None)
            label = f"`{name}.py{':' + preset if preset else ''}`"
            text = ", ".join(f"`{path}={value!r}`" for path, value in changes.items())
            rows.append((label, text or "no change"))
        return [_table(("config", "changes"), rows, (28, 72))]


class LaunchFlags(SphinxDirective):
    """A table of the flags of `launch.py`."""

    def run(self) -> list[nodes.Node]:
        """Imports the module that defines the flags, and builds the table."""
        module = importlib.import_module("imta_jax.cli.main")
        defined = flags.FLAGS.flags_by_module_dict().get(module.__name__)
        if not defined:
            raise self.error(f"{module.__name__} defines no flags")
        rows = [
            (f"`--{flag.name}`", "" if flag.default is None else _value(flag.default), flag.help)
            for flag in defined
        ]
        return [_table(("flag", "default", "description"), rows, (32, 22, 46))]


class CommandHelp(SphinxDirective):
    """The `--help` text of `python -m MODULE`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Runs the module in this process."""
        text = _help_of(self.arguments[0])
        return [nodes.literal_block(text, text, language="text")]


class PublicApi(SphinxDirective):
    """A summary and the documentation of every name in a package's `__all__`; for eval-rst."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Writes a summary table and autodoc directives, and parses them."""
        package = self.arguments[0]
        module = importlib.import_module(package)
        values = {name: getattr(module, name) for name in sorted(module.__all__, key=str.lower)}
        documented = {name: value for name, value in values.items() if callable(value)}
        constants = {name: value for name, value in values.items() if name not in documented}
        lines = [".. list-table::", "   :widths: 32 68", ""]
        for name, value in documented.items():
            summary = (inspect.getdoc(value) or "").partition("\n")[0]
            target = f"{_owner(name, value, package)}.{name}"
            lines += [f"   * - :py:obj:`{name} <{target}>`", f"     - {escape(summary)}"]
        lines += [""]
        for name, value in (documented | constants).items():
            # A name of another package is documented on that package's page.
            if name in constants or _owner(name, value, package) == package:
                lines += _documented(f"{package}.{name}", value)
        node = nodes.container()
        self.state.nested_parse(StringList(lines, package), self.content_offset, node)
        return node.children


def _owner(name: str, value: Any, package: str) -> str:
    """The package whose page documents a name: where it is defined, if it is public there."""
    defined = ".".join(value.__module__.split(".")[:2])
    public = getattr(importlib.import_module(defined), "__all__", ())
    return defined if name in public else package


def _documented(path: str, value: Any) -> list[str]:
    """The directive that documents a class, a function or a constant."""
    if isinstance(value, type):
        return [f".. autoclass:: {path}", "   :members:", "   :special-members: __call__", ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    # A constant has no docstring: a collection lists its names.
    items = value if isinstance(value, Iterable) else [value]
    text = ", ".join(f"`{item}`" for item in items)
    return [f".. py:data:: {path}", "", f"   {text}", ""]


def _help_of(module: str) -> str:
    """What `python -m MODULE --help` prints, 90 columns wide."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, "--help"]),
        mock.patch.dict(os.environ, COLUMNS="90"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # runpy warns where the module is imported already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return printed.getvalue()


def _value(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"`({', '.join(map(repr, value[:3]))}, ..., {value[-1]!r})`"
    return "not set" if value is None else f"`{value!r}`"


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]
) -> nodes.table:
    """A table; text between backticks is code, and each line of a cell is a paragraph."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=w) for w in widths), cols=len(widths))
    group += nodes.thead("", _row(header))
    group += nodes.tbody("", *(_row(cells) for cells in rows))
    table = nodes.table("", group, classes=["colwidths-given"])
    return table


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", *map(_paragraph, cell.split("\n"))) for cell in cells))


def _paragraph(text: str) -> nodes.paragraph:
    parts = text.split("`")
    kinds = (nodes.Text(part) if i % 2 == 0 else _code(part) for i, part in enumerate(parts))
    return nodes.paragraph("", "", *kinds)


def _code(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("config-presets", ConfigPresets)
    app.add_directive("launch-flags", LaunchFlags)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("public-api", PublicApi)
    return {"parallel_read_safe": True}
