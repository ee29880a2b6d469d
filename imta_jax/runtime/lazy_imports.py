"""Public names of a package that are imported on first access (PEP 562).

The `lazy_loader` package does the same for submodules of one package. Some names that our packages
export are defined in other packages, which it cannot express.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from imta_jax.runtime.optional_packages import explained


def lazy_imports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` for a package's `__init__`.

    Args:
      package: the package's `__name__`.
      modules: public name -> full name of the module that defines it.

    Returns:
      `__getattr__`, which imports the module of a name and raises an AttributeError for other
      names, and a MissingPackageError that names the extra if an optional package is missing;
      `__dir__`, which lists these names and those that the package already has.
    """

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(modules[name]), name)
        except ModuleNotFoundError as error:
            if missing := explained(error, f"{package}.{name}"):
                raise missing from error
            raise

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get_attribute, list_names
