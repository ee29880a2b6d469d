"""What the launcher tells who started it: fields that are not there, and errors in one line."""

import errno
import os
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from imta_jax.errors import unknown_name

# Of a disk that is full, over its quota or read-only: no bug, wherever it is met.
_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# What our checks raise, and the system, where something that was given does not fit.
_TOLD_PLAINLY = (ValueError, OSError, FloatingPointError, ImportError)
_PACKAGE = Path(__file__).parent.parent


def parse_flags(argv: Sequence[str]) -> list[str]:
    """As absl does it, but a config that is not there, or a field of it, is told in one line."""
    _refuse_bad_config(argv)
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):  # of the locked config, which does not list its fields
        _refuse_unknown_field(argv)
        raise


def plain_message(error: Exception) -> str | None:
    """An error without its traceback, if it was raised on purpose or is a disk's; else None.

    On purpose means by a `raise` in this package, of a type that is for users. The same types out
    of a library, or out of an expression of ours, are a bug that only the traceback tells.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, _TOLD_PLAINLY):
        return None
    last = frames[-1]
    ours = _PACKAGE in Path(last.filename).parents and (last.line or "").startswith("raise")
    if not ours and getattr(error, "errno", None) in _REFUSED_WRITES:
        return (
            f"error: the disk refuses what is to be written ({error}): make room, or choose a"
            " --workdir on another disk, then start the same command again"
        )
    return f"error: {error}" if ours else None


def end_with(error: Exception, *, whole: bool) -> NoReturn:
    """Ends the process with status 1, by a plain message where there is one.

    Args:
      error: what stopped the program; raised again if it has no plain message.
      whole: asks for the traceback in any case.
    """
    message = None if whole else plain_message(error)
    if message is None and not isinstance(error, OSError):
        raise error
    if message is None:
        traceback.print_exception(error)
    else:
        program = Path(sys.argv[0]).name
        print(f"{program}: {message}\n(--traceback tells where from)", file=sys.stderr)
    if isinstance(error, OSError):
        # At once, or what orbax's threads left undone would bury the message.
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _config_of(argv: Sequence[str]) -> str | None:
    """The last value of --config, in either way of writing it."""
    names = [argument.lstrip("-").partition("=") for argument in argv]
    values = [
        value if equals else argv[i + 1]
        for i, (name, equals, value) in enumerate(names)
        if name == "config" and (equals or i + 1 < len(argv))
    ]
    return values[-1] if values else None


def _refuse_bad_config(argv: Sequence[str]) -> None:
    """Exits if the config's file is not there or does not know the preset behind the colon."""
    file, _, preset = (_config_of(argv) or "").partition(":")
    if not file:
        return
    if not Path(file).is_file():
        found = ", ".join(map(str, sorted(Path(file).parent.glob("*.py")))) or "none"
        sys.exit(f"--config={file}: no such file; config files in that folder: {found}")
    if not preset:
        return
    try:
        runpy.run_path(file)["get_config"](preset)
    except ValueError as error:
        sys.exit(f"--config={file}:{preset}: {error}")
    except Exception:
        return  # whatever else is wrong with it, absl tells with its traceback


def _refuse_unknown_field(argv: Sequence[str]) -> None:
    """Exits with the first override in argv whose field the config file does not have."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv]
    for override in (re.fullmatch(r"(?:no)?config\.(.+)", name) for name in names):
        node, path = flags.FLAGS["config"].parser.parse(_config_of(argv)), "config"
        for field in override[1].split(".") if override else ():
            if not isinstance(node, ConfigDict) or field not in node:
                valid = node if isinstance(node, ConfigDict) else ()
                sys.exit(f"{override[0]}: {unknown_name(f'field of {path}', field, valid)}")
            node, path = node[field], f"{path}.{field}"
