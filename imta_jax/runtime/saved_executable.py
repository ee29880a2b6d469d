"""Executables that were compiled ahead of time on a machine without the accelerator.

`NAME.json` records what an executable was compiled from and for; `NAME.executable` holds it. A run
uses it only if program, versions and devices agree. The executable is read with pickle and run as
machine code, so only files of this user that nobody else can write are read (`private_files`).
"""

import hashlib
import json
import logging
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
from jax.experimental import serialize_executable

from imta_jax.errors import InputError
from imta_jax.runtime.machine import compiler_identity, differences
from imta_jax.runtime.private_files import NotPrivateError, read_private, write_private
from imta_jax.runtime.prng_keys import pickle_generators_by_name

_log = logging.getLogger(__name__)


def executable_identity(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> dict[str, Any]:
    """The versions and devices that an executable depends on.

    Args:
      lowered: the program.
      devices: devices to compile for; they need not exist on this host.
    """
    return {
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        **compiler_identity(devices[0]),
        "device_count": len(devices),
        "device_ids": [device.id for device in devices],
        "processes": 1 + max(device.process_index for device in devices),
        "flax": flax.__version__,
    }


def save_executable(
    path: Path, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, devices: Sequence[Any]
) -> None:
    """Writes `path`.json and `path`.executable.

    Args:
      path: without a suffix; others lose their access to its folder.
      lowered: the program.
      compiled: its executable, compiled in the context `without_jax_cache`.
      devices: devices that it was compiled for.
    """
    pickle_generators_by_name()
    content = zlib.compress(pickle.dumps(serialize_executable.serialize(compiled)), 1)
    write_private(path.parent, f"{path.name}.executable", content)
    identity = json.dumps(executable_identity(lowered, devices), indent=1)
    write_private(path.parent, f"{path.name}.json", f"{identity}\n".encode())


def is_saved(path: Path) -> bool:
    """Whether there is an executable of this path, as for `save_executable`."""
    return path.with_name(f"{path.name}.json").exists()


def load_executable(
    path: Path, lowered: jax.stages.Lowered, devices: Sequence[Any]
) -> Callable[..., Any] | None:
    """The saved executable of a program; None, with a log line that says why, if it does not fit.

    Args:
      path: see `save_executable`.
      lowered: the program that is to run.
      devices: devices of all processes that it is to run on.
    """
    try:
        recorded = json.loads(read_private(path.parent, f"{path.name}.json"))
    except FileNotFoundError:
        return None
    except (NotPrivateError, OSError, ValueError) as error:
        _log.warning("%s.json cannot be used: %s; compiling", path, error)
        return None
    if different := differences(recorded, executable_identity(lowered, devices)):
        _log.warning("%s.executable is of another program: %s; compiling", path, different)
        return None
    return _read(path, lowered, devices)


def _read(
    path: Path, lowered: jax.stages.Lowered, devices: Sequence[Any]
) -> Callable[..., Any] | None:
    try:
        content = read_private(path.parent, f"{path.name}.executable")
        program, arguments, results = pickle.loads(zlib.decompress(content))
        if (arguments, results) != (lowered.in_tree, lowered.out_tree):
            raise InputError("it takes or returns other pytrees")
        run = serialize_executable.deserialize_and_load(
            program, arguments, results, execution_devices=list(devices)
        )
    except Exception as error:  # Damage and other versions raise many types.
        _log.warning(
            "%s.executable cannot be loaded (%s: %s); compiling", path, type(error).__name__, error
        )
        return None
    _log.info("the training step was compiled ahead of time: %s.executable", path)
    return run
