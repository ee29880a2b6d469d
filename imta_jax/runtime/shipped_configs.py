"""The config files that ship with the package, by name: `--config=cifar100:published`.

In a clone they are the files of `configs/`. A wheel holds copies of them (`setup.py`).
"""

import os
import runpy
import sys
from pathlib import Path

from ml_collections import ConfigDict

from imta_jax.errors import InputError, unknown_name

_PACKAGE = Path(__file__).parents[1]
# The folder in a wheel, then in a clone. In a wheel, `shipped` can be put on `sys.path` without
# making other modules importable.
_FOLDERS = (_PACKAGE / "shipped" / "configs", _PACKAGE.parent / "configs")


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configs by name, for example "quickstart" or "studies/ablation"."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    files = [file for file in sorted(folder.rglob("*.py")) if "def get_config(" in file.read_text()]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def config_file(value: str) -> str:
    """The config file that `--config` names.

    Args:
      value: NAME or FILE, without the preset. A value that ends in .py or is a file is a path.

    Returns:
      The path of the shipped config, or the value itself if it is a path.

    Raises:
      InputError: no shipped config has this name.
    """
    if not value or value.endswith(".py") or os.path.isfile(value):
        return value
    shipped = shipped_configs()
    if value not in shipped:
        raise unknown_name("config", value, [*shipped, "PATH.py"])
    return str(shipped[value])


def shipped_config(name: str) -> ConfigDict:
    """The config that `--config=NAME` or `--config=NAME:PRESET` gives, for use from Python.

    Args:
      name: of a config file that ships with the package, for example "quickstart" or
        "cifar100:published".

    Returns:
      A new config. Its fields can be changed.

    Raises:
      InputError: no shipped config has this name, or it does not have this preset.
    """
    name, colon, preset = name.partition(":")
    shipped = shipped_configs()
    if name not in shipped:
        raise unknown_name("config", name, list(shipped))
    folder = str(shipped[name].parents[name.count("/") + 1])
    if folder not in sys.path:  # config files import `configs.common`
        sys.path.insert(0, folder)
    get_config = runpy.run_path(str(shipped[name]))["get_config"]
    try:
        return get_config(preset) if colon else get_config()
    except ValueError as error:
        raise InputError(f"config {name}:{preset}: {error}") from error
