"""Command-line errors: unknown config fields, and errors that are printed without a traceback."""

import os
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from absl import app, flags
from ml_collections import ConfigDict

from imta_jax.errors import InputError, UserError, message_of, unknown_name
from imta_jax.runtime.background_errors import print_held_errors
from imta_jax.runtime.optional_packages import explained
from imta_jax.runtime.paths import make_working_directory_importable
from imta_jax.runtime.shipped_configs import config_file
from imta_jax.runtime.write_errors import DISK_REMEDIES

_NO_TEMPORARY_FOLDER = "No usable temporary directory"  # of Python's tempfile, on a full disk


def with_flag_files(argv: Sequence[str]) -> list[str]:
    """The arguments with the content of each file of --flagfile in its place.

    Exits with one line if a file cannot be read.
    """
    try:
        return [*argv[:1], *flags.FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)]
    except (flags.Error, ValueError) as error:  # a ValueError if the file is not text
        reason = str(error).removeprefix("ERROR:: ").removeprefix("--flagfile ")
        sys.exit(f"--flagfile: {reason}; expected a text file with one flag per line")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags as absl does; a missing config file or unknown field is a one-line error."""
    argv = _with_config_files(argv)
    _make_configs_importable(argv)
    _exit_on_bad_config(argv)
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError):  # from the locked config, which does not list its fields
        _exit_on_unknown_field(argv)
        raise


def plain_message(error: Exception) -> str | None:
    """The line to print for an error that a user can fix; None for a bug.

    Args:
      error: a `UserError`, an error of the disk, a package of the core or of an extra that is
        missing, or any other exception (a bug).
    """
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, ModuleNotFoundError) and (missing := explained(error, "this command")):
        return f"error: {missing}"
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY_FOLDER in str(error):
        return (
            f"error: {message_of(error)}: free space in one of them, or set the environment"
            " variable TMPDIR to a folder on another disk, then run the same command"
        )
    if remedy := DISK_REMEDIES.get(getattr(error, "errno", None) or 0):
        return (
            f"error: the disk cannot be written ({message_of(error)}): {remedy}, or choose a"
            " --workdir on another disk, then run the same command to resume"
        )
    return None


def exit_with_error(error: Exception, *, show_traceback: bool) -> NoReturn:
    """Exits with status 1 and one line for a `UserError`; raises other errors again.

    Args:
      error: the exception that stopped the program.
      show_traceback: whether to show the traceback of a `UserError` too.
    """
    message = None if show_traceback else plain_message(error)
    if message is not None:
        program = Path(sys.argv[0]).name
        print(f"{program}: {message}\n(--traceback prints the traceback)", file=sys.stderr)
    else:
        print_held_errors()
        if not isinstance(error, OSError):
            raise error
        traceback.print_exception(error)
    if isinstance(error, OSError):
        # Exit at once: Orbax's threads would print their own errors after the message.
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _with_config_files(argv: Sequence[str]) -> list[str]:
    """The arguments with the file of each shipped config in place of its name."""
    expanded, is_value = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if is_value:
            argument = _with_file(argument)
        elif equals and flag.lstrip("-") == "config" and flag != "config":
            argument = f"{flag}={_with_file(value)}"
        is_value = argument in ("--config", "-config")
        expanded.append(argument)
    return expanded


def _with_file(value: str) -> str:
    name, colon, preset = value.partition(":")
    try:
        return f"{config_file(name)}{colon}{preset}"
    except InputError as error:
        sys.exit(f"--config={value}: {error}")


def _config_value(argv: Sequence[str]) -> str | None:
    """The last value of --config, from "--config=VALUE" or "--config VALUE"."""
    names = [argument.lstrip("-").partition("=") for argument in argv]
    values = [
        value if equals else argv[i + 1]
        for i, (name, equals, value) in enumerate(names)
        if name == "config" and (equals or i + 1 < len(argv))
    ]
    return values[-1] if values else None


def _config_file_and_preset(argv: Sequence[str]) -> tuple[str, str]:
    file, _, preset = (_config_value(argv) or "").partition(":")
    return file, preset


def _make_configs_importable(argv: Sequence[str]) -> None:
    """Adds the folder that contains `configs` to `sys.path`: config files import `configs.common`.

    A console script, unlike `python launch.py`, does not have the repository's root there. A config
    file that is not below a folder named `configs` may import files of its own folder. The working
    directory is added at the end, for components that are named by a dotted path.
    """
    file, _ = _config_file_and_preset(argv)
    make_working_directory_importable()
    if not file:
        return
    parents = Path(os.path.abspath(file)).parents
    root = next((folder.parent for folder in parents if folder.name == "configs"), parents[0])
    if str(root) not in map(os.path.abspath, sys.path):  # "" is the working directory
        sys.path.insert(0, str(root))


def _exit_on_bad_config(argv: Sequence[str]) -> None:
    """Exits if the config file does not exist or does not have the preset after the colon."""
    file, preset = _config_file_and_preset(argv)
    if not file:
        return
    if not os.path.isfile(file):
        names = ", ".join(map(str, sorted(Path(file).parent.glob("*.py")))) or "none"
        sys.exit(f"--config={file}: no such file; config files in that folder: {names}")
    if not preset:
        return
    try:
        runpy.run_path(file)["get_config"](preset)
    except ValueError as error:
        sys.exit(f"--config={file}:{preset}: {error}")
    except Exception:
        return  # absl reports any other error of the file with its traceback


def _exit_on_unknown_field(argv: Sequence[str]) -> None:
    """Exits with the first override in argv whose field the config does not have."""
    parser = cast(Any, flags.FLAGS["config"].parser)
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        override = re.fullmatch(r"(?:no)?config\.(.+)", name)
        if override is None:
            continue
        node, path = parser.parse(_config_value(argv)), "config"
        for field in override[1].split("."):
            if not isinstance(node, ConfigDict) or field not in node:
                valid = node if isinstance(node, ConfigDict) else ()
                sys.exit(f"{name}: {unknown_name(f'field of {path}', field, valid)}")
            node, path = node[field], f"{path}.{field}"
